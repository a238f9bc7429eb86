"""Two processes that look at one path and may see two folders, as on two machines."""

import multiprocessing
import os
import platform
from collections.abc import Callable
from pathlib import Path

import pytest

from rlkl.errors import EnvironmentProblem
from rlkl.learner.sharing import Sighting, Token, token_in

HERE = Path("/proc/self/cwd")
"""Another folder for each process that has another working directory."""


def look_from(folder: Path, token: Token) -> Sighting:
    os.chdir(folder)
    return token.look()


def sighting(folder: Path, token: Token) -> Sighting:
    """Return the view of a process whose working directory is ``folder``."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(look_from, (folder, token))


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("driver", "learner"):
        (tmp_path / name / "run").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "driver")


def test_a_shared_folder_passes_and_keeps_nothing(tmp_path: Path):
    with token_in(HERE / "run") as token:
        token.check(sighting(tmp_path / "driver", token), "the learner")
    assert list((tmp_path / "driver" / "run").iterdir()) == []


def test_a_learner_that_sees_another_folder_is_refused_with_what_to_do(tmp_path: Path):
    with token_in(HERE / "run") as token, pytest.raises(EnvironmentProblem) as caught:
        token.check(sighting(tmp_path / "learner", token), "the learner")
    for part in ("run.dir = /proc/self/cwd/run is not shared with the learner", platform.node(), "all machines mount"):
        assert part in str(caught.value)
    assert list((tmp_path / "driver" / "run").iterdir()) == []


def takes_the_token_and_answers_elsewhere(run: Path, token: Token) -> None:
    (run / token.path.name).write_text(token.text)


def holds_another_token(run: Path, token: Token) -> None:
    (run / token.path.name).write_text("another run's")


@pytest.mark.parametrize(
    ("prepare", "problem"),
    [
        (takes_the_token_and_answers_elsewhere, "what it writes there does not arrive on this machine"),
        (holds_another_token, "it sees another file"),
    ],
)
def test_a_copy_of_the_folder_is_not_the_folder(tmp_path: Path, prepare: Callable[[Path, Token], None], problem: str):
    with token_in(HERE / "run") as token:
        prepare(tmp_path / "learner" / "run", token)
        with pytest.raises(EnvironmentProblem, match=problem):
            token.check(sighting(tmp_path / "learner", token), "the learner")
