"""A compact record reads as the record of `metrics.jsonl` that it was made from."""

from __future__ import annotations

import tracemalloc

import pytest

from rlkl.recipe.io import load_recipe
from rlkl.tracking.console.view import RunState
from rlkl.tracking.records.compact import CompactRecord

RECORD = {"step": 7, "reward/mean": 0.1, "kl/policy_to_reference": 1e-300, "count": 3}


def test_it_has_the_values_of_the_record_to_the_last_bit() -> None:
    record = CompactRecord(RECORD)
    assert dict(record) == RECORD
    assert record == RECORD
    assert list(record) == list(RECORD)
    assert isinstance(record["step"], int)
    assert record["kl/policy_to_reference"] == 1e-300
    assert "reward/mean" in record
    assert "eval/mean" not in record
    assert record.get("eval/mean", 0.5) == 0.5
    with pytest.raises(KeyError, match="eval/mean"):
        record["eval/mean"]


def test_records_with_other_metrics_or_another_order_do_not_mix() -> None:
    first, second = CompactRecord({"a": 1.0, "b": 2.0}), CompactRecord({"b": 3.0, "a": 4.0, "c": 5.0})
    assert (first["a"], first["b"], second["a"], second["b"], second["c"]) == (1.0, 2.0, 4.0, 3.0, 5.0)


def test_a_step_adds_less_than_a_kilobyte_to_what_a_run_keeps() -> None:
    state = RunState(recipe=load_recipe("quickstart"))
    names = [f"metric/{number}" for number in range(65)]
    tracemalloc.start()
    state.update({"step": 1, **dict.fromkeys(names, 0.5)}, [])
    before, _ = tracemalloc.get_traced_memory()
    for step in range(2, 1002):
        state.update({"step": step, **dict.fromkeys(names, step / 3)}, [])
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (after - before) / 1000 < 1024
    assert state.series("metric/64")[-1] == 1001 / 3
