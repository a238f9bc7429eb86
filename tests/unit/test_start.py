"""What set-up refuses, of a new run and of a resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlkl.errors import CheckpointError, InputError
from rlkl.learner.checkpoint import LoopState
from rlkl.start import _check_rewards, train
from tests.integration.runs import make_recipe
from tests.models import tiny_qwen2_5_vl

STATE = LoopState(step=4, position=8, run_id="a", reward_fingerprints={"gold": "1", "short": "2"}, data_fingerprint="d")


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"gold": "1", "short": "3"}, "'short' is changed"),
        ({"gold": "1"}, "'short' is gone"),
        ({"gold": "1", "short": "2", "new": "4"}, "'new' is new"),
        ({"gold": "5", "other": "2"}, "'gold' is changed, 'other' is new, 'short' is gone"),
    ],
)
def test_changed_rewards_are_refused_or_warned_about(
    now: dict[str, str], message: str, caplog: pytest.LogCaptureFixture
):
    with pytest.raises(CheckpointError, match=f"not what they were at step 4.*{message}.*--allow-changed-rewards"):
        _check_rewards(STATE, now, allow_changed=False)
    assert not caplog.records
    _check_rewards(STATE, now, allow_changed=True)
    assert message in caplog.text


def test_the_same_rewards_go_on_without_a_word(caplog: pytest.LogCaptureFixture):
    _check_rewards(STATE, {"short": "2", "gold": "1"}, allow_changed=False)
    _check_rewards(None, {"gold": "1"}, allow_changed=False)
    _check_rewards(replace(STATE, reward_fingerprints={}), {}, allow_changed=False)
    assert not caplog.records


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"update": {"rule": "ppo", "critic": "model"}}, r"update\.critic = 'model' .* token ids only.*critic = head"),
        ({"learner": {"device": "cuda"}}, r"learner\.device = 'cuda', but the learner sees no CUDA device"),
    ],
    ids=["a critic of its own for pictures", "cuda without a GPU"],
)
def test_a_run_that_cannot_learn_is_refused_before_anything_starts(
    sections: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    recipe = make_recipe(tmp_path / "run", tiny_qwen2_5_vl(tmp_path / "model", seed=0), **sections)

    with pytest.raises(InputError, match=message):
        train(recipe)

    assert not (tmp_path / "run").exists()
