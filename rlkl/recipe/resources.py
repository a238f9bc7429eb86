"""What the actors of a run reserve."""

from __future__ import annotations

from dataclasses import dataclass

from rlkl.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuShares:
    """GPUs of each rollout worker and of the learner; fractions share one."""

    worker: float
    learner: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardNeeds:
    """What all reward actors together reserve."""

    cpus: float
    gpus: float


def reward_needs(recipe: Recipe) -> RewardNeeds:
    """Of the rewards in mode ``actor``."""
    actors = [reward for reward in recipe.rewards if reward.mode == "actor"]
    return RewardNeeds(
        cpus=sum(reward.workers * reward.cpus for reward in actors),
        gpus=sum(reward.workers * reward.gpus for reward in actors),
    )


def gpu_shares(recipe: Recipe, gpus: float) -> GpuShares:
    """What the recipe spells out; else one GPU an actor, or equal shares where there are fewer GPUs than actors."""
    gpus -= reward_needs(recipe).gpus
    on_gpu = recipe.rollout.workers + (recipe.learner.device != "cpu")
    share = min(1.0, max(gpus, 0.0) / max(on_gpu, 1))
    worker, learner = recipe.rollout.gpus_per_worker, recipe.learner.gpus
    return GpuShares(
        worker=share if worker is None else worker,
        learner=(0.0 if recipe.learner.device == "cpu" else share) if learner is None else learner,
    )
