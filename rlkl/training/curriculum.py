"""The state of a source that learns, in a file of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

from rlkl.data.prompts import PromptSource
from rlkl.errors import CheckpointError

_FILE = "curriculum.json"


def write_curriculum(folder: Path, source: PromptSource, *, position: int) -> None:
    """Write what the source needs to draw from ``position`` on; nothing if its draws depend on nothing."""
    if state := source.state(position):
        (folder / _FILE).write_text(json.dumps(state) + "\n")


def restore_curriculum(folder: Path, source: PromptSource) -> None:
    """Restore what `write_curriculum` wrote; raise `CheckpointError` if the file cannot be read."""
    path = folder / _FILE
    if not source.state(0) and not path.exists():
        return
    try:
        source.restore(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); remove {folder} to use an older checkpoint") from error
