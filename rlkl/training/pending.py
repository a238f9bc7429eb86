"""Groups that have been sampled and scored but not trained on, in a file of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rlkl.data.prompts import PromptSource
from rlkl.errors import CheckpointError
from rlkl.training.curriculum import restore_curriculum
from rlkl.types import Completion, Rollout, RolloutGroup

_FILE = "pending.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """The part of a schedule that a checkpoint keeps."""

    position: int
    """Prompts drawn by finished steps: the first draw that is not trained on."""
    groups: tuple[RolloutGroup, ...] = ()
    """Finished groups of draws from ``position`` on, in the order of their draws."""
    rounds: int = 1
    """Rounds in which they were sampled."""


def write_pending(folder: Path, pending: Pending) -> None:
    """Write the groups into a checkpoint's folder, as JSON; nothing if there are none. Prompts stay in the data."""
    if pending.groups:
        groups = [[plain_rollout(rollout) for rollout in group.rollouts] for group in pending.groups]
        (folder / _FILE).write_text(json.dumps({"rounds": pending.rounds, "groups": groups}) + "\n")


def read_pending(folder: Path, source: PromptSource, *, position: int) -> Pending:
    """Read the groups that `write_pending` wrote; raises `CheckpointError` if the file cannot be read.

    Their prompts are those that ``source`` has drawn, so its state is restored first.
    """
    restore_curriculum(folder, source)
    path = folder / _FILE
    if not path.exists():
        return Pending(position=position)
    try:
        values = json.loads(path.read_text())
        groups = tuple(_group(rows, source) for rows in values["groups"])
        return Pending(position=position, groups=groups, rounds=values["rounds"])
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); remove {folder} to use an older checkpoint") from error


def plain_rollout(rollout: Rollout) -> dict[str, Any]:
    """Return the values by name, without copies of them: there may be millions of tokens."""
    values = {field.name: getattr(rollout, field.name) for field in fields(rollout)}
    completion = {field.name: getattr(rollout.completion, field.name) for field in fields(rollout.completion)}
    return values | {"completion": completion}


def _group(rows: list[dict[str, Any]], source: PromptSource) -> RolloutGroup:
    (prompt,) = source.draw(rows[0]["draw"], 1)
    return RolloutGroup(prompt=prompt, rollouts=tuple(read_rollout(row) for row in rows))


def read_rollout(row: Mapping[str, Any]) -> Rollout:
    """Build a rollout of the values of `plain_rollout`; JSON has made lists of its tuples."""
    completion = {name: _tuples(value) for name, value in row["completion"].items()}
    values = {name: _tuples(value) for name, value in row.items() if name != "completion"}
    return Rollout(completion=Completion(**completion), **values)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list) else value
