"""Hashes of columns: the same in every process, other for every other value."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rlkl.data.fingerprints import column_fingerprints
from rlkl.data.sources import read_rows
from rlkl.recipe import DataSection

DIFFERENT: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 10**30, 0.0, 1.0, 1e-300, float("inf"), float("nan"), "", "1", "null", "true", "a\nb",
    "\ud800", "ä", b"", b"a", "a", [], [None], [1], [1.0], [[1]], [1, 2], [2, 1], {}, {"a": 1}, {"a": [1]}, {"b": 1},
    {1: "a"}, {"1": "a", 2: "b"}, dt.date(2026, 1, 2), dt.datetime(2026, 1, 2), dt.time(1, 2), dt.timedelta(seconds=1),
    Decimal("1.0"), Decimal("1.00"), np.arange(3), np.arange(3.0), np.array(["a", None], dtype=object),
    Image.new("RGB", (2, 2)), Image.new("RGB", (1, 4)), Image.new("RGB", (2, 2), "red"),
)  # fmt: skip


def digest(value: Any) -> str:
    return column_fingerprints([{"x": value}])["x"]


def test_different_values_have_different_hashes():
    assert len({digest(value) for value in DIFFERENT}) == len(DIFFERENT)
    absent = column_fingerprints([{"y": 1}, {"x": 1, "y": 1}])["x"]
    assert len({absent, column_fingerprints([{"x": None}, {"x": 1}])["x"]}) == 2


def test_equal_values_have_equal_hashes_whatever_the_order_of_keys():
    assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1})
    assert digest({1: "a", "b": 2}) == digest({"b": 2, 1: "a"})
    assert digest((1, 2)) == digest([1, 2])
    assert digest({"a", "b", "c"}) == digest({"c", "b", "a"})


def test_rows_count_in_order():
    rows = [{"x": 1, "y": 1}, {"x": 2, "y": 1}]
    one, other = column_fingerprints(rows), column_fingerprints(rows[::-1])
    assert (one["x"] == other["x"], one["y"] == other["y"]) == (False, True)
    assert column_fingerprints([{"x": "1\n2"}])["x"] != column_fingerprints([{"x": "1"}, {"x": "2"}])["x"]


def test_values_of_a_parquet_file_hash_alike_in_every_process(tmp_path: Path):
    table = pa.table(
        {
            "prompt": ["a", "b"],
            "when": pa.array([dt.datetime(2026, 1, 2), None], pa.timestamp("us")),
            "price": pa.array([Decimal("1.50"), None], pa.decimal128(9, 2)),
            "tags": pa.array([["x"], None], pa.list_(pa.string())),
            "map": pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())),
            "nested": [{"a": {"b": [1.5]}}, None],
            "bytes": [b"\x00\xff", None],
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    rows = read_rows(DataSection(source=str(tmp_path / "rows.parquet"))).numbered
    here = column_fingerprints(row for _, row in rows if isinstance(row, dict))
    code = (
        "import sys; from rlkl.data.fingerprints import *; from rlkl.data.sources import *; from rlkl.recipe import *;"
        "print(column_fingerprints(r for _, r in read_rows(DataSection(source=sys.argv[1])).numbered))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "rows.parquet")]
    answer = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, "PYTHONHASHSEED": "7"}
    )
    assert answer.stdout.strip() == str(here), answer.stderr
    assert len(set(here.values())) == len(table.column_names)


@pytest.mark.parametrize("value", [object(), lambda: 1], ids=["object", "function"])
def test_an_object_without_a_value_of_its_own_does_not_look_changed_each_time(value: object):
    assert digest(value) == digest(value)
    assert digest(object()) == digest(object())
