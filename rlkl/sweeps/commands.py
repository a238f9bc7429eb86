"""The command lines of a sweep's children."""

from __future__ import annotations

from pathlib import Path

from rlkl.analysis.sweep_plan import PlannedRun, SweepPlan
from rlkl.recipe.io import as_override, recipe_from
from rlkl.sweeps.evaluating import reference_of
from rlkl.sweeps.making import slug
from rlkl.sweeps.recipes import evaluation_file, point_file
from rlkl.sweeps.state import RunState


def train_words(run: PlannedRun, plan: SweepPlan, root: Path, state: RunState) -> list[str]:
    """Return the words of `rlkl train` that start a run, or go on with it."""
    folder = run.folder(root)
    if state is RunState.RESUMABLE:
        return ["train", "--resume", str(folder)]
    name = "-".join((plan.name, run.arm.folder, slug(run.point.name), f"seed-{run.seed}"))
    own = {"seed": run.seed, "run.name": name.replace("+", "_"), "run.dir": str(folder)}
    recipe = point_file(root, run.arm, run.point)
    return ["train", str(recipe), *(as_override(key, value) for key, value in own.items())]


def evaluate_words(policy: str, model: str, plan: SweepPlan, root: Path) -> list[str]:
    """Return the words of `rlkl eval` for a policy that started from ``model``, a name of `SweepPlan.models`."""
    assert plan.evaluate is not None
    reference = reference_of(recipe_from(plan.evaluate["recipes"][model], "evaluate"))
    return ["eval", policy, "--recipe", str(evaluation_file(root, model)), "--reference", reference, "--json"]
