"""The plan of a sweep, ``plan.json``, and where its runs are. It is written before the first run and never changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlkl.errors import InputError

PLAN_FILE = "plan.json"
SELECTION_FILE = "selection.json"
EVALUATION_FILE = "evaluation.json"
UNTRAINED = "untrained"
"""Folder of the evaluations of untrained models, within the sweep's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One point of an arm's grid."""

    name: str
    """Name of its folder: ``kl_coef-0.1``."""
    values: Mapping[str, Any]
    """The varied keys with their values."""
    overrides: Sequence[str]
    """The overrides of the arm's recipe that make this point; the seed comes on top."""
    recipe_hash: str
    """Hash of the resolved recipe without seed, name and folder."""
    untrained: str
    """Folder of its untrained model's evaluation, within `UNTRAINED`."""

    @property
    def label(self) -> str:
        """The varied keys, short: ``kl_coef=0.1``."""
        return " ".join(f"{key.rpartition('.')[2]}={_short(value)}" for key, value in self.values.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedArm:
    """One arm."""

    name: str
    folder: str
    recipe: str
    """The recipe's file or name."""
    resolved: Mapping[str, Any]
    """The resolved recipe of the first point, without seed, name and folder."""
    points: Sequence[Point]
    steps: int
    """Steps of each run."""
    sequences: int
    """Sequences of a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The rule by which the point of an arm is chosen."""

    seeds: Sequence[int]
    by: str
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One run."""

    arm: PlannedArm
    point: Point
    seed: int

    @property
    def label(self) -> str:
        """Arm, point and seed in words."""
        return " ".join(filter(None, (self.arm.name, self.point.label, f"seed {self.seed}")))

    def folder(self, root: Path) -> Path:
        """Return the run's folder in the sweep's folder ``root``."""
        return root / self.arm.folder / self.point.name / f"seed-{self.seed}"

    def log(self, root: Path) -> Path:
        """Return the file with everything that the run's processes print."""
        return root / self.arm.folder / self.point.name / f"seed-{self.seed}.log"

    def failure(self, root: Path) -> Path:
        """Return the file that says that the run failed, and why."""
        return root / self.arm.folder / self.point.name / f"seed-{self.seed}.failed.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """All runs of a sweep, decided before the first of them."""

    name: str
    baseline: str | None
    arms: Sequence[PlannedArm]
    select: Selection | None
    seeds: Sequence[int]
    """Seeds of the reported runs: of the chosen points, or of every point without a selection."""
    evaluate: Mapping[str, Any] | None
    models: Mapping[str, str]
    """Folder within `UNTRAINED` -> untrained model, as ``model.path`` names it."""
    warnings: Sequence[str]
    """Ways in which the arms are unequal."""
    origin: Mapping[str, Any]
    """Date, commit, versions and machine of the plan."""

    def selection_runs(self) -> Iterator[PlannedRun]:
        """Yield the runs that the selection needs, arm by arm."""
        for seed in self.select.seeds if self.select else ():
            for arm in self.arms:
                for point in arm.points:
                    yield PlannedRun(arm=arm, point=point, seed=seed)

    def reported_runs(self, chosen: Mapping[str, str]) -> Iterator[PlannedRun]:
        """Yield the reported runs; ``chosen``: the name of the chosen point by arm, unused without a selection."""
        for seed in self.seeds:
            for arm in self.arms:
                for point in arm.points:
                    if self.select is None or chosen.get(arm.name) == point.name:
                        yield PlannedRun(arm=arm, point=point, seed=seed)

    @property
    def number_of_runs(self) -> int:
        """The number of all runs, final ones included."""
        points = sum(len(arm.points) for arm in self.arms)
        if self.select is None:
            return points * len(self.seeds)
        return points * len(self.select.seeds) + len(self.arms) * len(self.seeds)

    def as_json(self) -> dict[str, Any]:
        """Return the plan as `plan_from` reads it."""
        return json.loads(json.dumps(asdict(self)))


def plan_from(values: Mapping[str, Any]) -> SweepPlan:
    """Build a plan from the values of a ``plan.json``."""
    arms = [PlannedArm(**{**arm, "points": [Point(**point) for point in arm["points"]]}) for arm in values["arms"]]
    select = None if values["select"] is None else Selection(**values["select"])
    return SweepPlan(**{**values, "arms": arms, "select": select})


def read_plan(root: Path) -> SweepPlan:
    """Read the plan of the sweep in ``root``; raise `InputError` if there is none."""
    path = root / PLAN_FILE
    try:
        return plan_from(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(
            f"{root} is not the folder of a sweep: it has no {PLAN_FILE}. Give the folder that `rlkl sweep` named, "
            "such as runs/NAME"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read as the plan of a sweep ({error})") from error


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object that the sweep has written; None without a file. Raises `InputError` if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); remove it and run the sweep again") from error


def chosen_points(root: Path) -> dict[str, str]:
    """Return the name of the chosen point by arm; empty before the selection and without one."""
    selection = read_json(root / SELECTION_FILE) or {"arms": {}}
    return {arm: found["point"] for arm, found in selection["arms"].items() if found["point"] is not None}


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
