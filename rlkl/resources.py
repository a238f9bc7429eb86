"""How many GPUs each actor of a run reserves."""

from __future__ import annotations

from dataclasses import dataclass

from rlkl.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuShares:
    """GPUs of each rollout worker and of the learner; fractions share one."""

    worker: float
    learner: float


def gpu_shares(recipe: Recipe, gpus: float) -> GpuShares:
    """What the recipe spells out; else one GPU an actor, or equal shares where there are fewer GPUs than actors."""
    on_gpu = recipe.rollout.workers + (recipe.learner.device != "cpu")
    share = min(1.0, gpus / max(on_gpu, 1))
    worker, learner = recipe.rollout.gpus_per_worker, recipe.learner.gpus
    return GpuShares(
        worker=share if worker is None else worker,
        learner=(0.0 if recipe.learner.device == "cpu" else share) if learner is None else learner,
    )
