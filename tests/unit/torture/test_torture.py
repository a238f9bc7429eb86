"""`make torture`: kills are planned for processes that a case has, and one that hits nothing is not survived."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlkl.recipe.io import load_recipe
from tests.torture import torture
from tests.torture.planning import EARLIEST, TRIES, Kill, only, plan_kills, targets_of

POSSIBLE = {case: targets_of(load_recipe(*words)) for case, words in torture.CASES.items()}


def test_a_case_has_the_processes_of_its_recipe() -> None:
    assert [case for case, targets in POSSIBLE.items() if "reward worker" in targets] == ["grpo"]
    assert [case for case, targets in POSSIBLE.items() if "rollout worker" not in targets] == ["sparsepo, stored pairs"]
    assert {target for targets in POSSIBLE.values() for target in targets} == set(torture.TARGETS)
    assert all({"driver", "learner", "raylet", "whole tree"} <= set(targets) for targets in POSSIBLE.values())


def test_only_possible_kills_are_planned_and_each_once_before_any_comes_again() -> None:
    pairs = [(case, target) for case, targets in POSSIBLE.items() for target in targets]
    kills = list(plan_kills(2 * len(pairs), 1, POSSIBLE))
    assert [kill.number for kill in kills] == list(range(1, 2 * len(pairs) + 1))
    for half in (kills[: len(pairs)], kills[len(pairs) :]):
        assert sorted((kill.case, kill.target) for kill in half) == sorted(pairs)


def test_few_kills_have_every_target_and_every_case() -> None:
    kills = list(plan_kills(20, 1, POSSIBLE))
    assert {kill.target for kill in kills[: len(torture.TARGETS)]} == set(torture.TARGETS)
    assert {kill.case for kill in kills} == set(torture.CASES)


def test_a_kill_has_several_moments_that_follow_from_the_seed() -> None:
    first, again, other = (list(plan_kills(9, seed, POSSIBLE)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert all(len(set(kill.shares)) == TRIES for kill in first)
    assert all(EARLIEST <= share <= 1 for kill in first for share in kill.shares)


def test_a_target_that_no_case_has_is_refused() -> None:
    assert only(["raylet"], POSSIBLE) == {case: ["raylet"] for case in POSSIBLE}
    with pytest.raises(ValueError, match="no run of superhf has this process: reward worker"):
        only(["raylet", "reward worker"], {"superhf": POSSIBLE["superhf"]})


def sleeper(seconds: float) -> psutil.Popen:
    return psutil.Popen([sys.executable, "-c", f"import time; time.sleep({seconds})"])


def test_a_kill_that_finds_no_process_hits_nothing_and_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[psutil.Popen] = []

    def start(words: Sequence[str], log: Path) -> psutil.Popen:
        started.append(sleeper(60))
        return started[-1]

    monkeypatch.setattr(torture, "start", start)
    arguments = ([], tmp_path / "run"), (0.05, tmp_path / "log")
    assert torture.kill_once(*arguments[0], "learner", *arguments[1]) is None
    told = torture.kill_once(*arguments[0], "whole tree", *arguments[1])
    assert told == "1 process(es) after 0 steps; exit code -9"
    assert [child.poll() for child in started] == [-9, -9]


def test_a_run_that_has_ended_is_not_hit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torture, "start", lambda *_: sleeper(0))
    assert torture.kill_once([], tmp_path / "run", "whole tree", 30, tmp_path / "log") is None


def test_a_run_that_fails_by_itself_is_no_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torture, "start", lambda *_: psutil.Popen([sys.executable, "-c", "raise SystemExit(3)"]))
    with pytest.raises(SystemExit, match="failed before it was killed"):
        torture.kill_once([], tmp_path / "run", "whole tree", 30, tmp_path / "log")


def write_run(run_dir: Path, *, steps: Sequence[int] = (1, 2), prompt: str = "a", **metrics: float) -> None:
    (run_dir / "samples").mkdir(parents=True)
    (run_dir / "policy").mkdir()
    records = [{"step": step, "weights/verified": 1.0, "rollout/staleness_max": 2.0} | metrics for step in steps]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for step in steps:
        table = pa.table({"prompt_id": ["b", prompt], "completion": [str(run_dir), "x"]})
        pq.write_table(table, run_dir / "samples" / f"step_{step:06d}.parquet")


STREAM = ("quickstart", "steps=2", "rollout.schedule=stream", "rollout.max_staleness=2")


@pytest.mark.parametrize(
    ("change", "differing"),
    [
        ({}, []),
        ({"steps": (1, 2, 2)}, ["steps"]),
        ({"steps": (1,)}, ["steps", "step_000002.parquet"]),
        ({"prompt": "c"}, ["step_000001.parquet", "step_000002.parquet"]),
        ({"weights/verified": 0.0}, ["unverified"]),
        ({"rollout/staleness_max": 3.0}, ["stale"]),
    ],
)
def test_a_stream_is_compared_by_what_timing_does_not_change(
    change: dict, differing: list[str], tmp_path: Path
) -> None:
    write_run(tmp_path / "whole")
    write_run(tmp_path / "killed", **change)
    whole, killed = (torture.facts(tmp_path / name, load_recipe(*STREAM)) for name in ("whole", "killed"))
    assert [name for name in whole if killed.get(name) != whole[name]] == differing


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Kill:
    """Return a kill of a case whose undisturbed run is there."""
    write_run(tmp_path / "undisturbed")
    (tmp_path / "seconds").write_text("10")
    return Kill(number=1, case="grpo, stream", target="learner", shares=[0.5, 0.3, 0.9])


def torture_with(
    answers: list[str | None], kill: Kill, folder: Path, monkeypatch: pytest.MonkeyPatch, **run: Any
) -> tuple[str, torture.Tally, list[float]]:
    moments = []

    def kill_once(words: Sequence[str], run_dir: Path, target: str, after_s: float, log: Path) -> str | None:
        moments.append(after_s)
        assert not run_dir.exists(), "every try starts anew"
        write_run(run_dir, **run)
        return answers.pop(0)

    monkeypatch.setattr(torture, "kill_once", kill_once)
    tally = torture.Tally()
    told = torture.torture(kill, ["train", *STREAM], folder, tally, seed=1)
    return told, tally, moments


def test_a_kill_that_misses_is_made_again_at_another_moment(
    kill: Kill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, tally, moments = torture_with([None, "1 process(es)"], kill, tmp_path, monkeypatch)
    assert told == "1 process(es); went on by itself: the same prompts"
    assert moments == [5, 3]
    assert (tally.hit, tally.same, tally.missed, tally.is_good) == (1, 1, 0, True)


def test_a_kill_that_misses_every_time_is_not_survived(
    kill: Kill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, tally, moments = torture_with([None, None, None], kill, tmp_path, monkeypatch)
    assert told == "missed at 3 moments"
    assert moments == [5, 3, 9]
    assert (tally.hit, tally.same, tally.missed, tally.is_good) == (0, 0, 1, False)


def test_a_run_that_differs_is_kept_and_counted(kill: Kill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, tally, _ = torture_with(["1 process(es)"], kill, tmp_path, monkeypatch, **{"weights/verified": 0.0})
    assert told.endswith(": ['unverified']")
    assert (tally.hit, tally.same, tally.missed, tally.is_good) == (1, 0, 0, False)
    assert (tmp_path / "kill-1-1").is_dir()
