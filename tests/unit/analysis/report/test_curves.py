"""Curves and frontiers of runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlkl.analysis.report.curves import POINTS, curves, evaluation_curves, frontiers, headlines, rule_metrics
from rlkl.analysis.runs import read_run
from tests.run_folders import record_of, write_metrics, write_run


def test_every_metric_has_its_definition_and_a_value_for_each_step(tmp_path: Path):
    run = read_run(write_run(tmp_path / "run", steps=3))
    found = curves([run])
    assert found["steps"] == [[1, 2, 3]]
    assert found["metrics"]["time/step_s"]["values"] == {0: [1.5, 1.5, 1.5]}
    assert found["metrics"]["kl/policy_to_reference"]["unit"] == "nats per sequence"
    assert next(iter(found["metrics"])) == "reward/mean"


def test_a_metric_that_a_run_or_a_step_lacks_is_null_or_absent(tmp_path: Path):
    first, second = write_run(tmp_path / "a", steps=2), write_run(tmp_path / "b", steps=2)
    write_metrics(second, [record_of(1, 0, 1.0), record_of(2, 0, 1.0) | {"update/late": 4.0}])
    found = curves([read_run(first), read_run(second)])["metrics"]["update/late"]
    assert found == {"unit": "", "formula": "", "bad": "", "values": {1: [None, 4]}}


def test_long_runs_are_thinned_to_means_of_equal_numbers_of_steps(tmp_path: Path):
    folder = write_run(tmp_path / "run", steps=0)
    write_metrics(folder, [{"step": step, "reward/mean": float(step)} for step in range(1, 1002)])
    found = curves([read_run(folder)])
    assert found["width"] == 3
    assert len(found["steps"][0]) <= POINTS
    assert found["steps"][0][:2] + found["steps"][0][-1:] == [3, 6, 1001]
    assert found["metrics"]["reward/mean"]["values"][0][:2] == [2, 5]


def test_the_frontier_has_a_point_a_step_each_a_mean_of_five(tmp_path: Path):
    folder = write_run(tmp_path / "run", steps=0)
    records = [
        {"step": s, "reward/mean": float(s), "kl/policy_to_reference": s / 10, "monitor/gold": 1.0}
        for s in range(1, 13)
    ]
    write_metrics(folder, records)
    reward, gold = frontiers([read_run(folder)])
    assert (reward["y"], gold["y"]) == ("reward/mean", "monitor/gold")
    assert reward["points"][0] == [0, 5, 0.3, 3]
    assert reward["points"][-1] == [0, 12, 1, 10]


def test_a_short_run_is_drawn_as_it_is_and_one_without_a_kl_not_at_all(tmp_path: Path):
    short = read_run(write_run(tmp_path / "a", steps=3))
    assert [point[1] for point in frontiers([short])[0]["points"]] == [1, 2, 3]
    folder = write_run(tmp_path / "b", steps=0)
    write_metrics(folder, [{"step": 1, "reward/mean": 1.0}])
    assert frontiers([read_run(folder)]) == []


def test_evaluations_have_standard_errors_and_a_frontier_of_their_own(tmp_path: Path):
    folder = write_run(tmp_path / "run", steps=3)
    lines = [{"step": step, "eval/mean": 0.5, "eval/mean_se": 0.1, "eval/kl": 0.2 * step} for step in (0, 3)]
    (folder / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = read_run(folder)
    assert evaluation_curves([run])["eval/mean"]["values"] == {0: [[0, 0.5, 0.1], [3, 0.5, 0.1]]}
    assert frontiers([run])[-1]["points"] == [[0, 0, 0, 0.5], [0, 3, 0.6, 0.5]]


def test_headlines_are_the_rows_of_the_console_with_every_monitor():
    keys = ["time/step_s", "monitor/gold/part", "monitor/gold", "reward/mean", "entropy/policy"]
    assert headlines(keys) == ["reward/mean", "monitor/gold", "entropy/policy"]


@pytest.mark.parametrize(
    ("rule", "key"), [("sparsepo", "mask/reward_zero_fraction"), ("papo", "perception/kl"), ("ppo", "loss/value")]
)
def test_the_metrics_of_a_rule_are_those_of_its_page(tmp_path: Path, rule: str, key: str):
    run = read_run(write_run(tmp_path / "run", f"update={{rule: {rule}}}", steps=1))
    found = rule_metrics([run], ["reward/mean", key, "time/corrupted_s", "rule/own"])
    assert found == {"names": [rule], "keys": [key, "rule/own"]}
