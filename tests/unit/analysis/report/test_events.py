"""Events of a run, from its folder."""

from __future__ import annotations

from pathlib import Path

from rlkl.analysis.report.events import events_of
from rlkl.analysis.runs import read_run
from rlkl.tracking.records.resumes import note_resume
from tests.run_folders import record_of, write_failures, write_metrics, write_run


def kinds(folder: Path) -> list[tuple[int, str, str]]:
    return [(event.step, event.kind, event.name) for event in events_of(read_run(folder))]


def test_a_signal_sets_in_at_its_limit_and_again_only_after_it_fell_below_four_fifths(tmp_path: Path):
    folder = write_run(tmp_path / "run")
    levels = [0.5, 0.99, 1.0, 0.85, 1.3, 0.79, 0.9, 1.01]
    records = [record_of(step, 0, 1.0) | {"watch/length": level} for step, level in enumerate(levels, start=1)]
    write_metrics(folder, records)
    assert kinds(folder) == [(3, "watch", "length"), (8, "watch", "length")]
    assert events_of(read_run(folder))[0].text == "watch/length is 1.00; its limit is 1"


def test_the_size_of_the_drift_is_the_one_of_the_warning(tmp_path: Path):
    folder = write_run(tmp_path / "run")
    records = [
        record_of(step, 0, 1.0)
        | {"rollout/length_mean": 10.0 if step <= 5 else 20.0, "watch/length": float(step == 10)}
        for step in range(1, 11)
    ]
    write_metrics(folder, records)
    (event,) = events_of(read_run(folder))
    assert event.text == "completions have 20.0 tokens, 2.00 times those of the start (10.0)"


def test_warnings_failures_checkpoints_and_resumes_are_events_in_the_order_of_steps(tmp_path: Path):
    folder = write_run(tmp_path / "run")
    write_metrics(folder, [record_of(step, 0, 1.0) | {"update/alarms": float(step in (2, 3))} for step in range(1, 6)])
    write_failures(folder, 4, 3)
    note_resume(folder, 1)
    (folder / "checkpoints" / "step_000005").mkdir(parents=True)
    (folder / "checkpoints" / ".writing-step_000006").mkdir()
    assert kinds(folder) == [
        (1, "resume", "resumed"),
        (2, "alarm", "warning of the rule"),
        (4, "failure", "failed scores"),
        (5, "checkpoint", "checkpoint"),
    ]
    assert events_of(read_run(folder))[2].text == "gold (timeout): 3"


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path):
    folder = write_run(tmp_path / "run")
    write_failures(folder, 4, 2)
    path = folder / "failures" / "step_000004.jsonl"
    path.write_text(path.read_text()[:-20])
    assert events_of(read_run(folder))[0].text == "gold (timeout): 1"


def test_a_run_without_a_step_has_no_event(tmp_path: Path):
    assert kinds(write_run(tmp_path / "run", steps=0)) == []
