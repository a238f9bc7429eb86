"""`rlkl sweep`: make many runs by one plan, and go on with them."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from rlkl.analysis.sweep_plan import PLAN_FILE, SweepPlan
from rlkl.commands.plan_inputs import check_inputs
from rlkl.errors import InputError
from rlkl.recipe.io import load_recipe, recipe_from
from rlkl.recipe.secret_values import check_no_secrets
from rlkl.rewards import load_rewards
from rlkl.sweeps.evaluating import check_figure
from rlkl.sweeps.making import load_sweep, make_plan
from rlkl.sweeps.running import default_jobs, places_of
from rlkl.sweeps.sweeping import Sweep, plan_there
from rlkl.sweeps.view import View
from rlkl.system.machine import this_machine


def check_plan(plan: SweepPlan) -> None:
    """Check models, data and rewards of each arm and of the evaluation, and that ``select.by`` names a figure.

    No point of an arm may hold a secret, because the sweep's folder records all of them.

    Raises `InputError`: what would otherwise be found after the training.
    """
    for arm in plan.arms:
        try:
            for point in arm.points:
                check_no_secrets(load_recipe(arm.recipe, *point.overrides))
            check_inputs(load_recipe(arm.recipe, *arm.points[0].overrides))
        except InputError as error:
            raise InputError(f"arm {arm.name}: {error}") from error
    for values in (plan.evaluate or {"recipes": {}})["recipes"].values():
        recipe = recipe_from(values, "evaluate")
        assert recipe.eval is not None
        try:
            check_inputs(recipe)
        except InputError as error:
            raise InputError(f"evaluate: {error}") from error
        if plan.select is not None and plan.select.by.startswith("eval/"):
            rewards = load_rewards(recipe.eval.rewards, for_evaluation=True).rewards
            check_figure(plan.select.by, [reward.name for reward in rewards])


def run(options: Namespace) -> int:
    """Run a sweep, or go on with it; return 0, 1 if runs failed, or 128 + the signal that interrupted it.

    Every recipe, with its models, data and rewards, is checked before the first run starts. With ``--dry-run`` only
    the runs are printed, or the refusal of a folder whose plan is another one.
    """
    if options.jobs is not None and options.jobs < 1:
        raise InputError(f"--jobs {options.jobs}: expected a number of runs at a time, 1 or more")
    settings = load_sweep(options.words)
    plan = make_plan(settings)
    check_plan(plan)
    root = Path(settings.dir or Path("runs") / settings.name)
    machine = this_machine()
    jobs = options.jobs or default_jobs(plan.arms, machine)
    if options.dry_run:
        if (root / PLAN_FILE).exists():
            plan_there(plan, root)
        View().dry_run(plan, root, jobs=jobs)
        return 0
    return Sweep(plan=plan, root=root, places=places_of(jobs, machine), retry=options.retry_failed, view=View()).run()
