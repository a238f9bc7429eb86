from pathlib import Path

import pytest

import rlkl
from rlkl.training.result import RunResult
from tests.integration.runs import make_recipe
from tests.models import tiny_qwen3


@pytest.fixture(scope="session")
def untied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen3(tmp_path_factory.mktemp("models") / "untied", tied=False, seed=0)


@pytest.fixture(scope="session")
def tied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen3(tmp_path_factory.mktemp("models") / "tied", tied=True, seed=0)


@pytest.fixture(scope="session")
def whole_run(untied_model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """One undisturbed run on vLLM, for all tests that only look."""
    return rlkl.train(make_recipe(tmp_path_factory.mktemp("runs") / "whole", untied_model))


@pytest.fixture(autouse=True)
def _away_from_other_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
