"""Plan a recipe for GPUs that this machine need not have: memory, seconds, the balanced split, and refusals."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass

from rlkl.commands.plan_layout import (
    CPUS_PER_NODE,
    Layout,
    Scene,
    layout_balanced,
    layout_today,
    tensor_parallel_of,
)
from rlkl.commands.plan_refusals import layout_warnings, refusals
from rlkl.commands.plan_schedules import Forecast, forecast
from rlkl.commands.plan_warnings import warnings_about
from rlkl.commands.plan_work import Work, training_of, work_of
from rlkl.costs.find import find_shape
from rlkl.costs.gpus import Gpu, gpu_named
from rlkl.costs.seconds import Chip
from rlkl.costs.shapes import ModelShape
from rlkl.errors import EnvironmentProblem, InputError
from rlkl.recipe import Recipe
from rlkl.recipe.io import load_recipe
from rlkl.recipe.secret_values import check_no_secrets
from rlkl.rollout.vllm_arguments import check_vllm_arguments
from rlkl.system.machine import Machine
from rlkl.tasks import task_name


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPlan:
    """A recipe on a number of GPUs."""

    recipe: Recipe
    gpu: Gpu
    gpus: int
    shape: ModelShape
    source: str
    """The place that the shape was read from."""
    work: Work
    today: Layout
    """The split that the recipe runs."""
    sharded: Layout | None
    """The split with a sharded learner in which both sides take equally long.

    None if it is what the recipe runs, or if none fits.
    """
    forecasts: tuple[Forecast, ...]
    """The simulated schedules of both layouts, without a layout that cannot sample."""
    refusals: tuple[str, ...]
    warnings: tuple[str, ...]

    def forecast_of(self, layout: Layout) -> Forecast | None:
        """Return the simulated schedules of one of the layouts."""
        keys = "" if layout is self.today else keys_of(self.recipe, layout)
        return next((one for one in self.forecasts if one.keys == keys), None)


def keys_of(recipe: Recipe, layout: Layout) -> str:
    """Return the overrides of a recipe that give a layout."""
    keys = [f"learner.ranks={layout.ranks}", f"rollout.workers={layout.engines}"]
    if layout.tensor_parallel != tensor_parallel_of(recipe):
        keys.append(f"rollout.tensor_parallel={layout.tensor_parallel}")
    if recipe.rollout.placement == "colocated" and not layout.in_turns:
        keys.append("rollout.placement=separate")
    return " ".join(keys)


def run(options: Namespace) -> int:
    """Print the plan of a recipe on ``--gpus`` GPUs; return 0, or raise `EnvironmentProblem` if it does not fit."""
    from rlkl.commands.plan_cluster_view import show

    recipe = load_recipe(options.recipe, *options.overrides)
    check_no_secrets(recipe)
    plan = plan_cluster(
        recipe,
        gpus=options.gpus,
        gpu=gpu_named(options.gpu),
        shape=options.shape,
        lengths=(options.prompt_tokens, options.completion_tokens),
    )
    show(plan)
    if plan.refusals:
        raise EnvironmentProblem("does not fit: " + " ".join(plan.refusals))
    return 0


def plan_cluster(
    recipe: Recipe,
    *,
    gpus: int,
    gpu: Gpu,
    shape: str | None = None,
    lengths: tuple[float | None, float | None] = (None, None),
) -> ClusterPlan:
    """Compute the plan of a recipe for so many GPUs of one kind.

    Args:
        shape: A config.json, or a folder with one, of a model that is not on this machine.
        lengths: Mean tokens of a prompt and of a completion; None: half of the allowed ones.

    Raises:
        InputError: the model's shape is unknown, the recipe trains on a CPU, or the options make no sense.
        EnvironmentProblem: the recipe's shares of GPUs cannot be placed.
    """
    _check(recipe, gpus, lengths)
    check_vllm_arguments(recipe.rollout.vllm.arguments)
    found, source = find_shape(recipe.model.path, shape)
    work = work_of(recipe, found, prompt=lengths[0], completion=lengths[1])
    scene = Scene(
        recipe=recipe,
        shape=found,
        chip=Chip(gpu=gpu, dtype=recipe.model.dtype),
        gpus=gpus,
        work=work,
        run=training_of(recipe, found),
    )
    _check_ranks(scene)
    today = layout_today(scene)
    sharded = layout_balanced(scene, rewards=today.rewards)
    if sharded is not None and (sharded.ranks, sharded.engine_gpus) == (today.ranks, today.engine_gpus):
        sharded = None
    layouts = [(today, "")] if sharded is None else [(today, ""), (sharded, keys_of(recipe, sharded))]
    found_forecasts = [forecast(scene, layout, keys) for layout, keys in layouts]
    machine = Machine(cpus=CPUS_PER_NODE, memory_gib=CPUS_PER_NODE, gpus=(f"{gpu.name}, {gpu.mib} MiB",) * gpus)
    return ClusterPlan(
        recipe=recipe,
        gpu=gpu,
        gpus=gpus,
        shape=found,
        source=source,
        work=work,
        today=today,
        sharded=sharded,
        forecasts=tuple(one for one in found_forecasts if one is not None),
        refusals=tuple(refusals(scene, today)),
        warnings=(*layout_warnings(scene, today, sharded), *warnings_about(recipe, machine)),
    )


def _check_ranks(scene: Scene) -> None:
    """Raise `EnvironmentProblem` if there are fewer GPUs than ranks and an engine."""
    ranks, workers = scene.recipe.learner.ranks, scene.recipe.rollout.workers
    apart = workers > 0 and scene.recipe.rollout.placement == "separate"
    least = ranks + (tensor_parallel_of(scene.recipe) if apart else 0)
    if ranks == 1 or least <= scene.gpus:
        return
    split = layout_balanced(scene, rewards=0)
    advice = (
        f"learner.ranks={split.ranks} rollout.workers={split.engines} is the balanced split of {scene.gpus}"
        if split is not None
        else "the learner fits no split of them"
    )
    raise EnvironmentProblem(
        f"learner.ranks = {ranks} and rollout.workers = {workers} need at least {least} GPUs, because a rank has one "
        f"of its own, and --gpus is {scene.gpus}: {advice}"
    )


def _check(recipe: Recipe, gpus: int, lengths: tuple[float | None, float | None]) -> None:
    if gpus < 1:
        raise InputError(f"--gpus {gpus}: expected 1 or more")
    limits = {"--prompt-tokens": recipe.data.max_prompt_tokens, "--completion-tokens": recipe.rollout.max_new_tokens}
    for (option, limit), given in zip(limits.items(), lengths, strict=True):
        if given is not None and not 0 < given <= limit:
            raise InputError(f"{option} {given:g}: a mean lies above 0 and at most at the limit of the recipe, {limit}")
    if task_name(recipe.model.path) is not None:
        raise InputError(
            f"model.path = {recipe.model.path} is a built-in model of less than a million parameters, which trains on "
            "a CPU; --gpus plans models of the Hugging Face hub or of a folder"
        )
    if recipe.learner.device == "cpu" or recipe.learner.gpus == 0:
        raise InputError("the learner of this recipe has no GPU (learner.device, learner.gpus); leave out --gpus")
