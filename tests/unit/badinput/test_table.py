"""Every case of bad input ends with one message that names the thing and the way out."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlkl.cli import main
from rlkl.errors import RlklError
from tests.unit.badinput.case import HERE, Case, Place, Shelf
from tests.unit.badinput.table import AREAS

CASES = [pytest.param(case, id=f"{area}-{case.wrong}") for area, cases in AREAS.items() for case in cases]


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("shelf"))


@pytest.fixture
def place(tmp_path: Path, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("rlkl.training.setup._run", _must_not_start)
    place = Place(tmp_path, shelf, monkeypatch)
    with place.held:
        yield place


def _must_not_start(*_: object) -> None:
    raise AssertionError("the run has started")


def _exit_code(case: Case, place: Place, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run a case; return the exit code and what was written to stderr."""
    if callable(case.run):
        with pytest.raises(RlklError) as caught:
            case.run(place)
        return caught.value.exit_code, f"error: {caught.value}\n"
    try:
        code = main(shlex.split(case.run) if isinstance(case.run, str) else case.run)
    except SystemExit as stopped:  # argparse ends so
        code = int(stopped.code or 0)
    return code, capsys.readouterr().err


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_error_that_names_the_thing_and_the_way_out(
    case: Case, place: Place, capsys: pytest.CaptureFixture[str]
):
    case.make(place)
    before = _files(place.here)
    capsys.readouterr()
    code, told = _exit_code(case, place, capsys)
    names, way = (text.replace(HERE, str(place.here)) for text in (case.names, case.way))
    assert names in told
    assert way in told[told.index(names) + len(names) :]
    assert told.startswith("error: ")
    assert told.count("error: ") == 1
    assert "Traceback" not in told
    assert code == case.exit
    assert case.leaves or _files(place.here) == before


def test_there_are_eighty_cases_in_eight_areas_and_none_twice():
    cases = [case for cases in AREAS.values() for case in cases]
    assert (len(AREAS), len(cases) >= 80) == (8, True)
    assert [text for text, count in Counter(case.wrong for case in cases).items() if count > 1] == []
    assert [text for text, count in Counter((case.names, case.way) for case in cases).items() if count > 1] == []


def test_debug_shows_the_traceback_before_the_message(place: Place, capsys: pytest.CaptureFixture[str]):
    for words in (["--debug", "plan", "r.yaml", "steps=0"], ["plan", "r.yaml", "steps=0", "--debug"]):
        assert main(words) == 2
        told = capsys.readouterr().err
        assert told.startswith("Traceback (most recent call last):")
        assert told.splitlines()[-1].startswith("error: r.yaml with overrides: steps = 0")


@pytest.mark.parametrize("error", [ConnectionResetError("peer"), OSError(2**20, "no such errno"), KeyError("steps")])
def test_an_error_that_is_no_file_of_the_user_keeps_its_traceback(
    error: Exception, place: Place, monkeypatch: pytest.MonkeyPatch
):
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("rlkl.training.setup._run", fails)
    with pytest.raises(type(error)):
        main(["train", "r.yaml"])
