"""`make torture`: kills are planned for processes that a case has, and one that hits nothing is not survived."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlkl.recipe.io import load_recipe
from tests.torture import driver, torture, wandb_steps
from tests.torture.driver import CHECKPOINT, PUBLISH, mark, phase_in
from tests.torture.planning import KILLS_A_RUN, Kill, Round, only, plan_rounds, targets_of

POSSIBLE = {case: targets_of(load_recipe(*words)) for case, words in torture.CASES.items()}


def planned(kills: int, seed: int = 1) -> list[Round]:
    return plan_rounds(kills, seed, POSSIBLE, steps=torture.STEPS)


def test_a_case_has_the_processes_of_its_recipe() -> None:
    assert [case for case, targets in POSSIBLE.items() if "reward worker" not in targets] == ["sparsepo, stored pairs"]
    assert [case for case, targets in POSSIBLE.items() if "rollout worker" not in targets] == ["sparsepo, stored pairs"]
    ranks = [case for case, targets in POSSIBLE.items() if "one of two ranks" in targets]
    assert ranks == ["grpo, 2 ranks", "grpo, 2 ranks, one_step_off"]
    assert all(("learner" in targets) != (case in ranks) for case, targets in POSSIBLE.items())
    assert {target for targets in POSSIBLE.values() for target in targets} == set(torture.TARGETS)
    assert all({"driver", "raylet", "whole tree"} <= set(targets) for targets in POSSIBLE.values())


@pytest.mark.parametrize("kills", [1, 3, 20])
def test_each_target_is_killed_so_often_and_only_in_cases_that_have_it(kills: int) -> None:
    made = [(plan.case, kill.target) for plan in planned(kills) for kill in plan.kills]
    assert Counter(target for _, target in made) == dict.fromkeys(torture.TARGETS, kills)
    assert all(target in POSSIBLE[case] for case, target in made)


def test_the_kills_of_a_target_are_spread_evenly_over_its_cases() -> None:
    made = Counter((plan.case, kill.target) for plan in planned(20) for kill in plan.kills)
    for target in torture.TARGETS:
        counts = [made[case, target] for case, targets in POSSIBLE.items() if target in targets]
        assert max(counts) - min(counts) <= 1, target


def test_the_kills_of_a_run_come_at_different_steps_in_order() -> None:
    rounds = planned(20)
    assert [plan.number for plan in rounds] == list(range(1, len(rounds) + 1))
    for plan in rounds:
        steps = [kill.steps for kill in plan.kills]
        assert steps == sorted(set(steps))
        assert len(steps) <= KILLS_A_RUN
        assert set(steps) <= set(range(torture.STEPS))
        assert all(0 <= kill.share < 1 for kill in plan.kills)


def test_kills_wait_for_phases_too_and_follow_from_the_seed() -> None:
    assert {kill.phase for plan in planned(20) for kill in plan.kills} == {None, PUBLISH, CHECKPOINT}
    assert planned(3) == planned(3)
    assert planned(3) != planned(3, seed=2)


def test_a_target_that_no_case_has_is_refused() -> None:
    assert only(["raylet"], POSSIBLE) == {case: ["raylet"] for case in POSSIBLE}
    with pytest.raises(ValueError, match="no run of sparsepo has this process: one of two ranks"):
        only(["raylet", "one of two ranks"], {"sparsepo": POSSIBLE["sparsepo"]})


class Marked:
    def outer(self) -> str:
        return f"{self.inner()}, then {phase_in(self.file)}"

    def inner(self) -> str:
        return phase_in(self.file)

    def __init__(self, file: Path) -> None:
        self.file = file


def test_the_phase_of_a_run_is_that_of_the_innermost_marked_method(tmp_path: Path) -> None:
    file = tmp_path / "phase"
    assert phase_in(file) == "set-up"
    mark(Marked, "outer", "step", outside="between steps", file=file)
    mark(Marked, "inner", PUBLISH, outside="step", file=file)
    assert Marked(file).outer() == "publish, then step"
    assert phase_in(file) == "between steps"


def test_all_marked_methods_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marked = []
    monkeypatch.setattr(
        driver, "mark", lambda owner, method, phase, **_: marked.append((getattr(owner, method), phase))
    )
    driver.mark_all(tmp_path / "phase")
    assert {PUBLISH, CHECKPOINT} <= {phase for _, phase in marked}


# Stands for a run: finishes as many steps as the file "allowed" says, and goes on after the last one that is in its
# folder. A kill of the child, which stands for a worker, changes nothing.
STAND_IN = """
import json, subprocess, sys, time
from pathlib import Path
folder, steps = Path(next(w for w in sys.argv if w.startswith("run.dir=") or "/" in w).removeprefix("run.dir=")), 4
(folder / "checkpoints").mkdir(parents=True, exist_ok=True)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "worker"])
metrics = folder / "metrics.jsonl"
done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
for step in range(done + 1, steps + 1):
    while step > int((folder.parent / "allowed").read_text()):
        time.sleep(0.01)
    with metrics.open("a") as file:
        file.write(json.dumps({"step": step}) + "\\n")
    (folder / "checkpoints" / f"step_{step}").mkdir(exist_ok=True)
child.kill()
"""


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(words: Sequence[str], log: Path, **_: str) -> psutil.Popen:
        return psutil.Popen([sys.executable, "-c", STAND_IN, *words])

    monkeypatch.setattr(torture, "start", start)
    monkeypatch.setitem(torture.TARGETS, "rollout worker", lambda process: "worker" in process.cmdline())
    monkeypatch.setitem(torture.TARGETS, "driver", lambda process: "train" in process.cmdline())


def test_a_run_is_killed_at_its_moments_and_resumed_until_it_is_done(stand_in: None, tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.write_text("1")
    run = torture.Run(["train"], tmp_path / "run", tmp_path / "log")
    kill = Kill(target="rollout worker", steps=1, share=0.0)
    assert run.strike(kill, step_s=0.0) == "rollout worker at step 1 (set-up)"
    allowed.write_text("2")
    assert run.strike(replace(kill, target="driver", steps=2), step_s=0.0) == "driver at step 2 (set-up)"
    allowed.write_text("3")
    assert run.strike(replace(kill, target="whole tree", steps=3), step_s=0.0) == "2 processes at step 3 (set-up)"
    assert run.starts == 2
    allowed.write_text("4")
    run.finish()
    assert run.starts == 3
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 4


def test_a_kill_that_waits_for_a_phase_falls_in_it(stand_in: None, tmp_path: Path) -> None:
    (tmp_path / "allowed").write_text("0")
    run = torture.Run(["train"], tmp_path / "run", tmp_path / "log")
    (tmp_path / "log.phase").write_text(PUBLISH)
    kill = Kill(target="driver", steps=0, share=0.9, phase=PUBLISH)
    assert run.strike(kill, step_s=60.0) == "driver at step 0 (publish)"
    run.end()


def test_a_kill_that_finds_no_process_is_no_hit(stand_in: None, tmp_path: Path) -> None:
    (tmp_path / "allowed").write_text("4")
    run = torture.Run(["train"], tmp_path / "run", tmp_path / "log")
    assert run.strike(Kill(target="raylet", steps=0, share=0.0), step_s=0.0) is None
    run.finish()
    assert run.starts == 1


def test_a_run_that_never_ends_well_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torture, "start", lambda *_, **__: psutil.Popen([sys.executable, "-c", "raise SystemExit(3)"]))
    run = torture.Run(["train"], tmp_path / "run", tmp_path / "log")
    with pytest.raises(SystemExit, match="did not come to its end in 4 resumes"):
        run.finish()


def write_run(run_dir: Path, *, steps: Sequence[int] = (1, 2), prompt: str = "a", **metrics: float) -> None:
    (run_dir / "samples").mkdir(parents=True)
    (run_dir / "policy").mkdir()
    records = [
        {"step": step, "weights/verified": 1.0, "rollout/staleness_max": 2.0, "time/step_s": 0.25} | metrics
        for step in steps
    ]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for step in steps:
        table = pa.table({"prompt_id": ["b", prompt], "completion": [str(run_dir), "x"]})
        pq.write_table(table, run_dir / "samples" / f"step_{step:06d}.parquet")


STREAM = (
    "quickstart",
    "steps=2",
    "rollout.schedule=stream",
    "rollout.max_staleness=2",
    "tracking.wandb=off",
)


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


class FakeRun:
    """A run whose kills hit or miss as told, and that leaves a folder."""

    starts = 2
    answers: list[str | None]
    written: dict[str, Any]

    def __init__(self, words: Sequence[str], run_dir: Path, log: Path) -> None:
        self._run_dir = run_dir

    def strike(self, kill: Kill, *, step_s: float) -> str | None:
        assert step_s == 0.25
        return self.answers.pop(0)

    def finish(self) -> None:
        write_run(self._run_dir, **self.written)

    def end(self) -> None:
        pass


def tortured(
    answers: list[str | None], folder: Path, monkeypatch: pytest.MonkeyPatch, **written: Any
) -> tuple[str, Any]:
    write_run(folder / "undisturbed")
    fake = type("Told", (FakeRun,), {"answers": answers, "written": written})
    monkeypatch.setattr(torture, "Run", fake)
    kills = [Kill(target=target, steps=0, share=0.5) for target in ("driver", "raylet")]
    plan = Round(number=1, case="grpo, stream", kills=kills)
    tallies = {target: torture.Tally() for target in ("driver", "raylet")}
    told = torture.torture(plan, ["train", *STREAM], folder, tallies, seed=1)
    return told, [(tally.hit, tally.same, tally.missed) for tally in tallies.values()]


def test_a_run_that_ends_as_undisturbed_is_counted_for_each_of_its_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, counts = tortured(["driver at step 0 (step)", "raylet at step 1 (publish)"], tmp_path, monkeypatch)
    assert told == "driver at step 0 (step), raylet at step 1 (publish); 2 starts: the same prompts"
    assert counts == [(1, 1, 0), (1, 1, 0)]
    assert not (tmp_path / "round-1-1").exists()


def test_a_kill_that_misses_is_not_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, counts = tortured([None, "raylet at step 1 (step)"], tmp_path, monkeypatch)
    assert told.startswith("driver missed, raylet at step 1")
    assert counts == [(0, 0, 1), (1, 1, 0)]


def test_a_run_that_differs_is_kept_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[str | None] = ["driver at step 0 (step)", "raylet at step 1 (step)"]
    told, counts = tortured(answers, tmp_path, monkeypatch, **{"weights/verified": 0.0})
    assert told.endswith(": ['unverified']")
    assert counts == [(1, 0, 0), (1, 0, 0)]
    assert (tmp_path / "round-1-1").is_dir()


def test_steps_in_two_parts_of_wandb_count_once_if_they_are_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {"a": [(1, 0.5), (2, 0.25)], "b": [(2, 0.25), (3, 0.5), (3, 0.5)], "c": [(3, 0.125)]}
    for name in parts:
        (tmp_path / "wandb" / f"offline-run-{name}").mkdir(parents=True)

    def rows(part: Path) -> list[dict[str, float]]:
        found = parts[part.name.removeprefix("offline-run-")]
        return [
            {"step": step, "reward/mean": mean, "time/step_s": id(part), "samples.size": id(part)}
            for step, mean in found
        ]

    monkeypatch.setattr(wandb_steps, "read_rows", rows)
    assert wandb_steps.recorded_steps(tmp_path) == [1, 2, 3, 3, 3]
