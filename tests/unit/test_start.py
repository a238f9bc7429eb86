"""What a start and a resume refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rlkl.cli import main
from rlkl.errors import CheckpointError, EnvironmentProblem
from rlkl.learner.checkpoint import LoopState
from rlkl.recipe.io import load_recipe
from rlkl.start import _check_rewards, train
from tests.models import tiny_qwen3

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


def test_too_many_workers_are_refused_before_the_run_folder_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    model = tiny_qwen3(tmp_path / "model", tied=True, seed=0)
    words = ["quickstart", f"model.path={model}", "rollout.engine=hf", "rollout.workers=1000", "run.dir=run"]
    with pytest.raises(EnvironmentProblem, match=r"rollout.workers = 1000: this run starts 1001 actors"):
        train(load_recipe(*words))
    assert main(["train", *words]) == 2
    assert not (tmp_path / "run").exists()
