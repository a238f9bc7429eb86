"""Folders of sweeps and runs as `rlkl sweep` leaves them, with numbers that are known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlkl.analysis.fits import curve
from rlkl.analysis.sweep_plan import EVALUATION_FILE, PLAN_FILE, UNTRAINED, PlannedRun, SweepPlan, chosen_points
from rlkl.recipe.io import dump_recipe, load_recipe
from rlkl.sweeps.making import make_plan
from rlkl.sweeps.selection import select
from rlkl.sweeps.settings import SweepSection
from rlkl.sweeps.state import write_json

START = 0.3
"""The figure of the untrained policy."""
STEPS = 12
Course = Callable[[PlannedRun], Sequence[tuple[float, float]]]
"""KL and gain of a run at each of its steps."""


def write_run(
    folder: Path, records: Sequence[Mapping[str, float]], evaluation: Mapping[str, float], *overrides: str
) -> None:
    """Write the folder of a finished run."""
    (folder / "policy").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(dump_recipe(load_recipe("quickstart", *overrides)))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    write_json(folder / EVALUATION_FILE, {"policy": str(folder), "metrics": dict(evaluation)})


def record(step: int, kl: float, gain: float) -> dict[str, float]:
    """One record of training."""
    return {
        "step": step,
        "reward/mean": START + gain,
        "monitor/gold": START + gain,
        "kl/policy_to_reference": kl,
        "rollout/length_mean": 4.0,
        "time/step_s": 0.5,
    }


def evaluation(kl: float, gain: float) -> dict[str, float]:
    """The metrics of `rlkl eval`."""
    return {"eval/gold": START + gain, "eval/mean": START + gain, "eval/kl": kl}


def gao_course(
    a: float, b: float, *, noise: float = 0.0, form: Any = "log", top: float = 9.0
) -> Callable[[int, float], list[tuple[float, float]]]:
    """Return a function of seed and last KL: a run that follows Gao's curve, with noise at each step."""

    def course(seed: int, last: float = top) -> list[tuple[float, float]]:
        rng = np.random.default_rng(seed)
        shift = rng.normal(0, noise)
        found = []
        for step in range(STEPS):
            kl = last * (step / (STEPS - 1)) ** 2
            found.append((kl, (1 + shift) * curve(math.sqrt(kl), a, b, form) + rng.normal(0, noise / 10)))
        return found

    return course


def planted_sweep(
    root: Path, values: Mapping[str, Any], course: Course, *, failed: Sequence[tuple[str, int]] = ()
) -> SweepPlan:
    """Write a finished sweep; ``values``: as in a sweep file; ``failed``: arm and seed of runs that failed."""
    evaluate = {"data": {"source": "task:arithmetic"}, "samples": 4, "seed": 9}
    plan = make_plan(SweepSection.model_validate({"steps": STEPS, "evaluate": evaluate, **values}))
    write_json(root / PLAN_FILE, plan.as_json())
    for model in plan.models:
        write_json(root / UNTRAINED / model / EVALUATION_FILE, {"metrics": evaluation(0.0, 0.0)})
    runs = list(plan.selection_runs())
    _write(root, runs, course, failed)
    if plan.select is not None:
        select(plan, root)
    _write(root, list(plan.reported_runs(chosen_points(root))), course, failed)
    return plan


def _write(root: Path, runs: Sequence[PlannedRun], course: Course, failed: Sequence[tuple[str, int]]) -> None:
    for run in runs:
        if (run.arm.name, run.seed) in failed:
            write_json(run.failure(root), {"stage": "train", "attempts": 1, "exit_code": 1, "message": "error: NaN"})
            continue
        points = course(run)
        records = [record(step, kl, gain) for step, (kl, gain) in enumerate(points, start=1)]
        overrides = [*run.point.overrides, f"seed={run.seed}"]
        write_run(run.folder(root), records, evaluation(*points[-1]), *overrides)
