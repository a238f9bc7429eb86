"""The one schema of a run's sample files."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from rlkl.tracking.records.pictures import picture_columns
from rlkl.types import SHARED_TOKEN_COLUMNS

TOKEN_COLUMN = pa.list_(pa.float64())
"""Type of a column with one number a token."""

_FIRST = (
    "step",
    "prompt_id",
    "prompt",
    "completion",
    "completion_ids",
    "tokens",
    "logprobs",
    "finish_reason",
    "reward",
)
_NAMED = ("reward/", "monitor/")
_AFTER = ("reward_tags", "reward_failed", "sample_index", "weights_version", "versions", "evaluation")
"""Columns in their order; after them come numbers a token, those of every rule first, then pictures."""


def merged_schema(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Return the columns of all schemas in a fixed order, whatever the order in which they first came up."""
    fields = {field.name: field for schema in schemas for field in schema}
    pictures = picture_columns(list(fields))
    others = sorted(fields.keys() - set(pictures), key=_place)
    return pa.schema([fields[name] for name in (*others, *pictures)])


def fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the table with the schema's columns; those that it lacks are null."""
    columns = [
        table.column(field.name) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _place(name: str) -> tuple[int, int, str]:
    """Group, place in the group, name."""
    if name in _FIRST:
        return 0, _FIRST.index(name), name
    for number, prefix in enumerate(_NAMED):
        if name.startswith(prefix):
            return 1, number, name
    if name in _AFTER:
        return 2, _AFTER.index(name), name
    if name in SHARED_TOKEN_COLUMNS:
        return 3, SHARED_TOKEN_COLUMNS.index(name), name
    return 4, 0, name
