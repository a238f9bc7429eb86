"""The state of a sweep is read from its folders."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from rlkl.analysis.sweep_plan import EVALUATION_FILE, PlannedRun, SweepPlan, chosen_points, read_json, read_plan
from rlkl.errors import InputError
from rlkl.sweeps.making import load_sweep, make_plan
from rlkl.sweeps.selection import select
from rlkl.sweeps.state import (
    RunState,
    failure_of,
    has_steps,
    is_moved_aside,
    move_aside,
    record_failure,
    state_of,
)
from rlkl.sweeps.work import Work
from tests.unit.analysis.planted import record, write_run

WORDS = ["quickstart", "update.kl_coef=[0.1,0.2,0.4]", "name=s"]


@pytest.fixture
def plan() -> SweepPlan:
    return make_plan(load_sweep([*WORDS, "select={seeds: [0, 9], by: reward/mean, last: 1}", "final={seeds: 2}"]))


def first(plan: SweepPlan) -> PlannedRun:
    return next(plan.selection_runs())


def test_states_of_a_run(plan: SweepPlan, tmp_path: Path) -> None:
    folder = first(plan).folder(tmp_path)
    assert state_of(folder) is RunState.MISSING
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text("steps: 1\n")
    (folder / "metrics.jsonl").touch()
    assert (state_of(folder), has_steps(folder)) == (RunState.MISSING, False), "a run without a step may be overwritten"
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    assert (state_of(folder), has_steps(folder)) == (RunState.PARTIAL, True)
    (folder / "checkpoints" / ".writing-step_000002").mkdir(parents=True)
    assert state_of(folder) is RunState.PARTIAL
    (folder / "checkpoints" / "step_000002").mkdir()
    assert state_of(folder) is RunState.RESUMABLE
    (folder / "policy").mkdir()
    assert state_of(folder) is RunState.TRAINED


def test_a_run_that_starts_again_keeps_its_steps(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / "seed-1").mkdir()
        aside = move_aside(tmp_path / "seed-1")
        assert aside == tmp_path / f"seed-1.partial-{number}"
        assert is_moved_aside(aside)
    assert not is_moved_aside(tmp_path / "seed-1")
    assert not is_moved_aside(tmp_path / "impartial-1")
    assert not (tmp_path / "seed-1").exists()


def test_a_failure_is_recorded_with_its_cause(plan: SweepPlan, tmp_path: Path) -> None:
    run = first(plan)
    run.log(tmp_path).parent.mkdir(parents=True)
    run.log(tmp_path).write_text("$ rlkl train\nerror: step 3 produced loss = nan\n  more\n")
    assert failure_of(run, tmp_path) is None
    record_failure(run, tmp_path, stage="train", exit_code=1)
    found = record_failure(run, tmp_path, stage="train", exit_code=1)
    assert failure_of(run, tmp_path) == found
    assert (found["attempts"], found["message"]) == (2, "error: step 3 produced loss = nan")


def test_a_failed_run_is_tried_once_more_and_only_if_asked(plan: SweepPlan, tmp_path: Path) -> None:
    run = first(plan)
    run.log(tmp_path).parent.mkdir(parents=True)
    run.log(tmp_path).touch()

    def failed(*, retry: bool) -> bool:
        return Work(plan=plan, root=tmp_path, run=run, model=run.point.untrained, retry=retry).has_failed

    assert not failed(retry=False)
    record_failure(run, tmp_path, stage="train", exit_code=1)
    assert failed(retry=False)
    assert not failed(retry=True)
    record_failure(run, tmp_path, stage="train", exit_code=1)
    assert failed(retry=True)


def test_only_a_run_that_never_started_is_started_again(plan: SweepPlan, tmp_path: Path) -> None:
    run = first(plan)
    work = Work(plan=plan, root=tmp_path, run=run, model=run.point.untrained, starts=1)
    assert work._never_started(1)
    assert not work._never_started(2), "bad input stays bad"
    work.starts = 3
    assert not work._never_started(1)
    work.starts = 1
    write_run(run.folder(tmp_path), [record(1, 0.0, 0.0)], {})
    assert not work._never_started(1)


def test_a_run_that_a_stopping_sweep_ended_has_not_failed(plan: SweepPlan, tmp_path: Path) -> None:
    run = first(plan)
    work = Work(plan=plan, root=tmp_path, run=run, model=run.point.untrained)
    assert work._end(-signal.SIGABRT, may_go_on=False) == "interrupted"
    assert not run.failure(tmp_path).exists()


def test_the_output_of_an_evaluation_is_checked_and_kept(tmp_path: Path) -> None:
    words = ["quickstart", "seeds=1", "evaluate={data: {source: task:arithmetic/test}}"]
    plan = make_plan(load_sweep(words))
    work = Work(plan=plan, root=tmp_path, run=None, model="task_arithmetic", stage="evaluate")
    work.folder.mkdir(parents=True)
    output = work.folder / ".output-of-eval.json"
    output.write_text('{"policy": "x", "metrics": {"eval/mean": 1}}\n')
    assert work._end(0, may_go_on=True) == "done"
    assert read_json(work.folder / EVALUATION_FILE) == {"policy": "x", "metrics": {"eval/mean": 1.0}}
    assert not output.exists()
    (work.folder / EVALUATION_FILE).unlink()
    output.write_text("loading\n")
    assert work._end(0, may_go_on=True) == "failed"
    assert "printed something else than one JSON object" in work.log.read_text()
    assert not work.is_done


def finish(plan: SweepPlan, root: Path, values: dict[tuple[str, int], float]) -> None:
    for run in plan.selection_runs():
        value = values[run.point.name, run.seed]
        records = [record(1, 0.0, 9.0), record(2, 0.0, value)]
        write_run(run.folder(root), records, {}, *run.point.overrides, f"seed={run.seed}")


def rising(plan: SweepPlan) -> dict[tuple[str, int], float]:
    """Figures that grow with the weight."""
    return {(run.point.name, run.seed): run.point.values["update.kl_coef"] for run in plan.selection_runs()}


def test_the_best_mean_over_the_selection_seeds_is_chosen_and_stays(plan: SweepPlan, tmp_path: Path) -> None:
    values = {("kl_coef-0.1", 0): 0.1, ("kl_coef-0.1", 9): 0.5, ("kl_coef-0.2", 0): 0.4, ("kl_coef-0.2", 9): 0.4}
    finish(plan, tmp_path, {**values, ("kl_coef-0.4", 0): 0.2, ("kl_coef-0.4", 9): 0.2})
    choice = select(plan, tmp_path)["arms"]["quickstart"]
    assert (choice["point"], choice["at_edge"]) == ("kl_coef-0.2", [])
    assert choice["means"]["kl_coef-0.1"] == pytest.approx(0.6)
    assert chosen_points(tmp_path) == {"quickstart": "kl_coef-0.2"}
    assert [(run.point.name, run.seed) for run in plan.reported_runs(chosen_points(tmp_path))] == [
        ("kl_coef-0.2", 1),
        ("kl_coef-0.2", 2),
    ]
    run = first(plan)
    (run.folder(tmp_path) / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 99.0}\n')
    assert select(plan, tmp_path)["arms"]["quickstart"]["point"] == "kl_coef-0.2"


def test_a_point_with_a_failed_run_is_not_chosen(plan: SweepPlan, tmp_path: Path) -> None:
    finish(
        plan,
        tmp_path,
        {(run.point.name, run.seed): run.point.values["update.kl_coef"] for run in plan.selection_runs()},
    )
    best = next(run for run in plan.selection_runs() if run.point.name == "kl_coef-0.4")
    (best.folder(tmp_path) / "policy").rmdir()
    choice = select(plan, tmp_path)["arms"]["quickstart"]
    assert (choice["point"], choice["means"]["kl_coef-0.4"]) == ("kl_coef-0.2", None)


def test_the_largest_weight_is_at_the_edge(plan: SweepPlan, tmp_path: Path) -> None:
    finish(
        plan,
        tmp_path,
        {(run.point.name, run.seed): run.point.values["update.kl_coef"] for run in plan.selection_runs()},
    )
    assert select(plan, tmp_path)["arms"]["quickstart"]["at_edge"] == ["update.kl_coef"]


def test_another_folder_is_no_sweep(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not the folder of a sweep: it has no plan\.json"):
        read_plan(tmp_path)
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be read as the plan"):
        read_plan(tmp_path)
