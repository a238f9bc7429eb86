"""Read the parts of an offline W&B run: each start of a run leaves a folder of its own."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

_TIMEOUT_S = 300.0


def part_folders(run_dir: Path, run_id: str) -> list[Path]:
    """Return the folders of an offline run, oldest first."""
    return sorted((run_dir / "wandb").glob(f"offline-run-*-{run_id}"))


def read_rows(part: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a part with their ``step``. W&B reads the file; what a kill tore off is left out.

    Raises `OSError` if W&B cannot read it.
    """
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(part)]
    try:
        printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S).stdout
    except subprocess.SubprocessError as error:
        raise OSError(f"W&B cannot read {part}: {error}") from error
    for line in printed.splitlines():
        record = json.loads(line)
        if record["type"] == "history" and "step" in record["history"]["item"]:
            yield record["history"]["item"]


def last_step(run_dir: Path, run_id: str) -> int | None:
    """Return the last step that the parts of a run hold: -1 if they hold none, None if one cannot be read."""
    for part in reversed(part_folders(run_dir, run_id)):
        try:
            steps = [int(row["step"]) for row in read_rows(part)]
        except OSError as error:
            _log.warning("%s. Steps that a kill has cut off from W&B are not added to it", error)
            return None
        if steps:
            return max(steps)
    return -1
