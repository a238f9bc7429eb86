from __future__ import annotations

from pathlib import Path

import pytest

from rlkl.tracking.metrics.pages import render_docs, render_rule_page, rule_page
from rlkl.tracking.metrics.registry import METRICS, RULE_METRICS, check_known, find_definition, without_timings

DOCS = Path(__file__).parents[4] / "docs" / "metrics.md"


def test_docs_are_the_rendered_registry():
    assert DOCS.read_text() == render_docs(), "run: python -m rlkl.tracking.metrics.pages"


@pytest.mark.parametrize("rule", RULE_METRICS)
def test_the_page_of_a_rule_shows_its_metrics(rule: str):
    page = rule_page(rule).read_text()
    assert page == render_rule_page(rule, page), "run: python -m rlkl.tracking.metrics.pages"


def test_a_page_without_the_table_is_refused():
    with pytest.raises(ValueError, match="the page of grpo has no table of metrics"):
        render_rule_page("grpo", "# GRPO\n")


def test_each_key_is_defined_once():
    keys = [definition.key for definition in METRICS]
    assert sorted(set(keys)) == sorted(keys)


def test_unknown_keys_are_named():
    with pytest.raises(AssertionError, match=r"kl/typo, optim/speed"):
        check_known(["reward/mean", "optim/speed", "kl/typo", "loss/policy"])


@pytest.mark.parametrize(
    ("key", "defined_as"),
    [
        ("reward/mean", "reward/mean"),
        ("reward/failed", "reward/failed"),
        ("reward/gold", "reward/<name>"),
        ("reward/gold/format", "reward/<name>/<component>"),
        ("monitor/gold", "monitor/<name>"),
        ("loss/total", "loss/total"),
        ("loss/kl", "loss/kl"),
        ("loss/kl_teacher", "loss/<term>"),
    ],
)
def test_an_exact_key_wins_over_a_pattern(key: str, defined_as: str):
    definition = find_definition(key)
    assert definition is not None
    assert definition.key == defined_as


@pytest.mark.parametrize("key", ["reward/", "reward/a/b/c", "reward/a b", "xreward/mean", "reward"])
def test_a_pattern_takes_one_non_empty_name(key: str):
    assert find_definition(key) is None


def test_without_timings_keeps_what_two_equal_runs_share():
    record = {
        "step": 3,
        "reward/mean": 0.5,
        "time/step_s": 1.2,
        "time/other_fraction": 0.1,
        "rollout/tokens_per_s": 10.0,
        "throughput/samples_per_s": 2.0,
        "rollout/length_mean": 4.0,
    }
    assert without_timings(record) == {"step": 3, "reward/mean": 0.5, "rollout/length_mean": 4.0}
