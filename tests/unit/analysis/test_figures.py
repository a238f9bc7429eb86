"""One number of one run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlkl.analysis.figures import figure_of, find_figure, is_score, is_timing, measured
from rlkl.analysis.runs import read_run
from rlkl.errors import InputError
from tests.unit.analysis.planted import record, write_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", [record(step, 0.1, step / 10) for step in range(1, 21)], {"eval/gold": 0.7})
    return tmp_path / "run"


def test_a_metric_is_the_mean_of_the_last_steps(folder: Path) -> None:
    assert figure_of(read_run(folder), "reward/mean", 2) == pytest.approx(0.3 + 1.95)
    assert figure_of(read_run(folder), "reward/mean") == pytest.approx(0.3 + 1.55)


def test_the_evaluation_of_the_sweep_comes_first(folder: Path) -> None:
    (folder / "eval.jsonl").write_text(json.dumps({"step": 20, "eval/gold": 0.5}) + "\n")
    assert figure_of(read_run(folder), "eval/gold") == 0.7


def test_evaluations_of_training_count_after_the_start(folder: Path) -> None:
    (folder / "evaluation.json").unlink()
    lines = [{"step": step, "eval/gold": step / 10} for step in (0, 10, 20)]
    (folder / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert figure_of(read_run(folder), "eval/gold") == 2.0


def test_the_evaluation_of_the_final_policy_counts_alone(folder: Path) -> None:
    """A run that was good on the way and collapsed at its end has collapsed."""
    (folder / "evaluation.json").unlink()
    lines = [{"step": step, "eval/gold": value} for step, value in ((0, 0.35), (8, 0.7), (16, 0.6), (20, 0.05))]
    (folder / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert figure_of(read_run(folder), "eval/gold") == 0.05


def test_an_evaluation_before_the_last_step_is_not_of_the_final_policy(folder: Path) -> None:
    (folder / "evaluation.json").unlink()
    (folder / "eval.jsonl").write_text(json.dumps({"step": 16, "eval/gold": 0.7}) + "\n")
    assert find_figure(read_run(folder), "eval/gold") is None


def test_a_step_in_which_the_monitor_abstained_does_not_count(tmp_path: Path) -> None:
    records = [record(step, 0.1, step / 10) for step in range(1, 21)]
    del records[-1]["monitor/gold"]
    write_run(tmp_path / "run", records, {})
    assert figure_of(read_run(tmp_path / "run"), "monitor/gold", 2) == pytest.approx(0.3 + 1.9)
    assert find_figure(read_run(tmp_path / "run"), "monitor/gold", 1) is None


def test_the_evaluation_of_a_sweep_is_not_mixed_with_that_of_training(folder: Path) -> None:
    other = folder.with_name("other")
    write_run(other, [record(1, 0.1, 0.1)], {})
    (other / "evaluation.json").unlink()
    (other / "eval.jsonl").write_text(json.dumps({"step": 1, "eval/gold": 0.2}) + "\n")
    found = measured([read_run(folder), read_run(other)], "eval/gold")
    assert (dict(found.values), found.is_of_sweep) == ({folder: 0.7}, True)
    alone = measured([read_run(other)], "eval/gold")
    assert (dict(alone.values), alone.is_of_sweep) == ({other: 0.2}, False)


@pytest.mark.parametrize("key", ["reward/mean", "reward/gold", "monitor/gold", "eval/mean", "eval/gold", "eval/pass@4"])
def test_of_scores_more_is_better(key: str) -> None:
    assert is_score(key)


@pytest.mark.parametrize(
    "key", ["eval/kl", "eval/gold_se", "eval/truncated_fraction", "reward/std", "reward/failed", "time/step_s", "own"]
)
def test_other_metrics_have_no_better_side(key: str) -> None:
    assert not is_score(key)


def test_a_time_is_no_figure_of_the_policy() -> None:
    assert is_timing("time/step_s")
    assert not is_timing("eval/length_mean")


def test_an_unknown_figure_is_refused(folder: Path) -> None:
    assert find_figure(read_run(folder), "reward/meen") is None
    with pytest.raises(InputError, match="did you mean 'reward/mean'"):
        figure_of(read_run(folder), "reward/meen")
