"""Set-up refuses runs that cannot learn, before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlkl.errors import InputError
from rlkl.start import train
from tests.integration.runs import make_recipe
from tests.models import tiny_qwen2_5_vl


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
