"""The rows of sample files as sinks show them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rlkl.tracking.records.reading import sample_path

COLUMNS = ("step", "prompt_id", "prompt", "completion", "finish_reason", "reward")
"""The columns that every sink shows."""


def sample_rows(run_dir: Path, finished: int, *, kept: int) -> list[dict[str, Any]]:
    """Return the first ``kept`` rows of a step's sample file."""
    return pq.read_table(sample_path(run_dir, finished), columns=list(COLUMNS)).slice(0, kept).to_pylist()


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table of rows. Texts of the model are code, so that none of them is Markdown or HTML."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(_cell(row[name]) for name in COLUMNS)} |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        return f"{value:.6g}"
    one_line = value.replace("\r", "").replace("\n", "⏎")
    escaped = one_line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "&#124;")
    return f"<code>{escaped}</code>" if escaped else ""
