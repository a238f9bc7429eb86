"""Runs that are refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlkl.cli import main
from rlkl.errors import EnvironmentProblem
from rlkl.recipe.io import load_recipe
from rlkl.start import train
from tests.models import tiny_qwen3


def test_too_many_workers_are_refused_before_the_run_folder_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    model = tiny_qwen3(tmp_path / "model", tied=True, seed=0)
    words = ["quickstart", f"model.path={model}", "rollout.engine=hf", "rollout.workers=1000", "run.dir=run"]
    with pytest.raises(EnvironmentProblem, match=r"rollout.workers = 1000: this run starts 1001 actors"):
        train(load_recipe(*words))
    assert main(["train", *words]) == 2
    assert not (tmp_path / "run").exists()
