"""One place decides when an alarm begins."""

from __future__ import annotations

import ast
import logging
from pathlib import Path

import pytest

from rlkl.tracking.alarms import RELEASE, Alarms, warn_of
from rlkl.training.watch import STEPS_WITHOUT_GRADIENT, Watch

ROOT = Path(__file__).parents[3]


def test_an_alarm_begins_at_1_and_ends_below_its_release():
    alarms = Alarms()
    for level, begins in (
        (0.99, 0),
        (1.0, 1),
        (1.5, 0),
        (RELEASE, 0),
        (1.2, 0),
        (RELEASE - 0.01, 0),
        (0.9, 0),
        (1.0, 1),
    ):
        assert alarms.measure({"length": level}) == ["length"] * begins


def test_an_alarm_without_a_level_stays_as_it_is():
    alarms = Alarms()
    assert alarms.measure({"b": 2.0, "a": 1.0, "c": 0.0}) == ["b", "a"]
    assert alarms.measure({}) == []
    assert alarms.on == {"a", "b"}


def test_held_alarms_end_when_they_are_no_longer_named():
    alarms = Alarms()
    assert alarms.hold(["b", "a"]) == ["a", "b"]
    assert alarms.hold(["a", "c"]) == ["c"]
    assert alarms.on == {"a", "c"}
    assert alarms.hold([]) == []
    assert alarms.hold(["b"]) == ["b"]


def test_each_alarm_that_begins_is_one_warning(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, logger="rlkl"):
        warn_of({"a": "100% of it", "b": "second"})
    assert [record.getMessage() for record in caplog.records] == ["100% of it", "second"]


def test_steps_without_gradient_begin_anew_after_one_with_gradient(caplog: pytest.LogCaptureFixture):
    watch = Watch(samples=Path("samples"))
    steps = [0.0] * (2 * STEPS_WITHOUT_GRADIENT) + [1.0] + [0.0] * STEPS_WITHOUT_GRADIENT
    for number, norm in enumerate(steps, start=1):
        watch.gradient({"optim/grad_norm": norm})
        due = number in (STEPS_WITHOUT_GRADIENT, 2 * STEPS_WITHOUT_GRADIENT, len(steps))
        assert len(caplog.records) == due, number
        caplog.clear()


def test_a_resumed_run_does_not_repeat_the_rules_alarms(caplog: pytest.LogCaptureFixture):
    watch = Watch(samples=Path("samples"))
    watch.resume({"odd": "is odd"})
    watch.alarms({"odd": "is odd", "new": "is new"})
    assert [record.getMessage() for record in caplog.records] == ["is new"]


def test_no_source_of_alarms_prints_or_decides_by_itself():
    for name in ("training/watch.py", "tracking/hacking/watch.py"):
        tree = ast.parse((ROOT / "rlkl" / name).read_text())
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert "logging" not in imported, name
