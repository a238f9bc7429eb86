from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

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


SECRET = "hold-me-close-4711"
"""Value of the variable JUDGE_API_KEY in `whole_run`."""


@pytest.fixture(scope="session")
def ray_folder() -> Iterator[Path]:
    """The folder of the logs of Ray in `whole_run`; its path is short, as Ray's sockets need it."""
    with TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def whole_run(untied_model: Path, ray_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """One undisturbed run on vLLM, for all tests that only look."""
    recipe = make_recipe(tmp_path_factory.mktemp("runs") / "whole", untied_model, tracking={"report": True})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUDGE_API_KEY", SECRET)
        patch.setenv("RAY_TMPDIR", str(ray_folder))
        return rlkl.train(recipe)


@pytest.fixture(autouse=True)
def _away_from_other_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
