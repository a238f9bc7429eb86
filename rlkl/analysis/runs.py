"""Read the folders of runs, and group the runs into arms: runs of one arm differ in their seeds only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkl.errors import InputError
from rlkl.recipe.arm import NOT_OF_AN_ARM
from rlkl.recipe.core_yaml import parse_yaml, write_value
from rlkl.recipe.run_dir import EVAL_FILE, METRICS_FILE, recipe_path
from rlkl.tracking.records.reading import read_metrics

Record = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """The records of one run."""

    path: Path
    recipe: Mapping[str, Any]
    """The resolved recipe as plain values."""
    metrics: Sequence[Record]
    """One record a finished step, with ``step`` from 1."""
    evaluations: Sequence[Record]
    """One record an evaluation; the step is 0 before training."""

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.path.name

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(self.recipe["seed"])

    @property
    def is_finished(self) -> bool:
        """Whether the run has its final policy."""
        return (self.path / "policy").is_dir()


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """Runs whose recipes differ in their seeds only."""

    label: str
    """The keys in which this arm differs from the others, as overrides; the name of the run if it is the only arm."""
    values: Mapping[str, Any]
    """The values of these keys; a key that the recipe of this arm lacks is left out."""
    runs: Sequence[RunFolder]


def read_run(folder: Path) -> RunFolder:
    """Read the records of the run in ``folder``, whether it is finished or not.

    Raises `InputError` if it is not the folder of a run, and `CheckpointError` if its records are damaged.
    """
    recipe = recipe_path(folder)
    values = parse_yaml(recipe.read_text(encoding="utf-8"), str(recipe))
    if not isinstance(values, dict):
        raise InputError(f"{recipe} is not a recipe: expected keys with values, got {type(values).__name__}")
    return RunFolder(
        path=folder,
        recipe=values,
        metrics=read_metrics(folder / METRICS_FILE),
        evaluations=read_metrics(folder / EVAL_FILE),
    )


def arms_of(runs: Sequence[RunFolder]) -> list[Arm]:
    """Group runs into arms, in the order in which they first come up."""
    leaves = [dict(leaves_of(_without_ignored(run.recipe))) for run in runs]
    keys = dict.fromkeys(key for of_run in leaves for key in of_run)
    differing = [key for key in keys if len({write_value(of_run.get(key)) for of_run in leaves}) > 1]
    grouped: dict[str, list[int]] = {}
    for number, of_run in enumerate(leaves):
        label = " ".join(f"{key}={write_value(of_run[key])}" for key in differing if key in of_run)
        grouped.setdefault(label or str(runs[number].recipe.get("run", {}).get("name", "run")), []).append(number)
    return [
        Arm(
            label=label,
            values={key: leaves[numbers[0]][key] for key in differing if key in leaves[numbers[0]]},
            runs=[runs[number] for number in numbers],
        )
        for label, numbers in grouped.items()
    ]


def _without_ignored(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in recipe.items() if key not in NOT_OF_AN_ARM}


def leaves_of(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and their values; lists are values."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves_of(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
