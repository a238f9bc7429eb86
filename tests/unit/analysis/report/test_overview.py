"""Names of arms, and the table at the top of the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlkl.analysis.report.labels import short_labels, telling_keys
from rlkl.analysis.report.numbers import over_seeds, short
from rlkl.analysis.report.overview import arms_table, common_facts
from rlkl.analysis.runs import Arm, arms_of, read_run
from tests.run_folders import record_of, write_metrics, write_run


def arms(tmp_path: Path, *runs: tuple[str, ...]) -> list[Arm]:
    folders = [write_run(tmp_path / str(number), *overrides) for number, overrides in enumerate(runs)]
    return arms_of([read_run(folder) for folder in folders])


def test_arms_of_one_rule_are_named_by_the_keys_in_which_they_differ(tmp_path: Path):
    found = arms(tmp_path, ("update.kl_coef=0.0", "learner.lr=0.1"), ("update.kl_coef=0.2", "learner.lr=0.1"))
    assert short_labels(found) == ["kl_coef 0.0", "kl_coef 0.2"]


def test_arms_of_several_rules_are_named_by_their_rule_first(tmp_path: Path):
    found = arms(
        tmp_path,
        ("update={rule: grpo, kl_coef: 0.0}",),
        ("update={rule: grpo, kl_coef: 0.2}",),
        ("update={rule: ppo}",),
    )
    assert short_labels(found) == ["grpo, kl_coef 0.0", "grpo, kl_coef 0.2", "ppo"]
    assert telling_keys(found) == ["update.rule", "update.kl_coef"]


def test_the_only_arm_has_the_name_of_its_run(tmp_path: Path):
    assert short_labels(arms(tmp_path, ("run.name=mine", "seed=1"), ("run.name=mine", "seed=2"))) == ["mine"]


def test_the_table_has_a_row_for_each_arm_with_the_mean_of_the_last_five_steps_over_seeds(tmp_path: Path):
    found = arms(
        tmp_path, ("seed=1", "update.kl_coef=0.0"), ("seed=2", "update.kl_coef=0.0"), ("seed=1", "update.kl_coef=0.2")
    )
    for number, reward in enumerate((1.0, 2.0, 7.0)):
        steps = [record_of(step, 0, 1.0) | {"reward/mean": reward if step > 3 else 99.0} for step in range(1, 9)]
        write_metrics(tmp_path / str(number), [step | {"monitor/gold": 0.5} for step in steps])
    (tmp_path / "2" / "policy").mkdir()
    (tmp_path / "2" / "eval.jsonl").write_text(json.dumps({"step": 0, "eval/mean": 0.25}) + "\n")
    found = arms_of([read_run(tmp_path / name) for name in "012"])
    table = arms_table(found, {str(tmp_path / "1"): 2})
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    assert rows[0].items() >= {
        "": "kl_coef 0.0", "seed": "1, 2", "steps": "8 (0 of 2 finished)", "reward": "1.50 ± 0.71",
        "monitor/gold": "0.5 ± 0", "watch": "2", "eval/mean": "\N{EM DASH}", "step seconds": "12",
    }.items()  # fmt: skip
    assert rows[1].items() >= {"reward": "7", "steps": "8", "watch": "quiet", "eval/mean": "0.25"}.items()


def test_facts_are_those_that_all_runs_share(tmp_path: Path):
    found = arms(tmp_path, ("update.kl_coef=0.0", "steps=3"), ("update.kl_coef=0.2", "steps=4"))
    facts = dict(common_facts([run for arm in found for run in arm.runs]))
    assert facts["rule"] == "grpo"
    assert facts["model"] == "task:arithmetic"
    assert "steps" not in facts


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([None, None], "\N{EM DASH}"),
        ([0.5], "0.5"),
        ([0.71111, 0.7159], "0.7135 ± 0.0034"),
        ([1000.0, 3000.0], "2000 ± 1414"),
        ([1.0, None, float("nan")], "1"),
    ],
)
def test_mean_and_spread_have_digits_that_mean_something(values: list[float | None], text: str):
    assert over_seeds(values) == text


def test_numbers_in_the_file_are_short_and_those_that_json_lacks_are_null():
    assert [short(value) for value in (0.123456, 3.0, float("inf"), None, 1.23456e12)] == [
        0.1235,
        3,
        None,
        None,
        1.235e12,
    ]
