"""Decide how weights travel from the learner to the engines (``weights.transport``)."""

from __future__ import annotations

from typing import Literal

from rlkl.recipe.placement import LEARNER, WORKER, Placement
from rlkl.recipe.recipe import Recipe

Transport = Literal["auto", "host", "group"]


def decided_transport(recipe: Recipe, placement: Placement | None) -> Transport:
    """Return the transport of a run, with ``auto`` decided by the GPUs of its actors.

    It stays ``auto`` if ``placement`` is None (a cluster decides when the run starts) and would make a difference.
    """
    chosen, rollout = recipe.weights.transport, recipe.rollout
    if chosen != "auto":
        return chosen
    if rollout.tensor_parallel > 1:
        return "group"  # the host's memory reaches the first process of an engine only
    if rollout.workers == 0 or rollout.engine not in ("vllm", "hf"):
        return "host"
    if placement is None:
        return "auto"
    return "group" if have_own_gpus(placement) else "host"


def have_own_gpus(placement: Placement) -> bool:
    """Return whether each learner rank and each rollout worker has GPUs that no other of them uses.

    NCCL takes no two members on one GPU.
    """
    shared = [group.count(LEARNER) + group.count(WORKER) for group in placement.groups]
    return max(shared) == 1 and placement.gpus_of(LEARNER) >= 1 and placement.gpus_of(WORKER) >= 1
