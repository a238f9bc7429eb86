"""Engines on the learner's own GPUs (``rollout.placement: colocated``): their places, and the memory of both turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rlkl.errors import EnvironmentProblem
from rlkl.recipe import Recipe
from rlkl.recipe.room import LEARNER, WORKER, Actor, Group, Node, pack

IN_TURNS_SHARE = 0.5
"""The part of a GPU's memory that an engine may take by default if the resting learner keeps its weights there."""
ASLEEP_GIB = 3.0
"""GPU memory of an engine that sleeps: its CUDA context, graphs and workspaces stay."""


def colocates(recipe: Recipe, nodes: Sequence[Node]) -> bool:
    """Return whether engines lie on the learner's GPUs. Without any GPU all actors share the cores in any case.

    Raises `EnvironmentProblem` if there are GPUs and the learner has none, or too few for the engines.
    """
    rollout, learner = recipe.rollout, recipe.learner
    if rollout.placement != "colocated" or not any(node.gpus for node in nodes):
        return False
    if learner.device == "cpu" or learner.gpus == 0:
        key = "learner.device = cpu" if learner.device == "cpu" else "learner.gpus = 0"
        raise EnvironmentProblem(
            f"rollout.placement = colocated puts the engines on the learner's GPUs, but with {key} it has none; leave "
            "that out, or set rollout.placement=separate"
        )
    needed = rollout.workers * rollout.tensor_parallel
    if needed > learner.ranks:
        raise EnvironmentProblem(
            f"rollout.placement = colocated: rollout.workers = {rollout.workers} engines of {rollout.tensor_parallel} "
            f"GPU(s) lie on the GPUs of {needed} learner ranks, but learner.ranks = {learner.ranks}. Set "
            f"learner.ranks={needed}, lower rollout.workers, or set rollout.placement=separate"
        )
    return True


def pack_in_turns(actors: Sequence[Actor], nodes: Sequence[Node], *, tensor_parallel: int) -> tuple[Group, ...]:
    """Place each engine with the learner ranks whose GPUs it uses, so that both are on one node.

    A rank has one GPU, an engine ``tensor_parallel`` of them and reserves none. Raises `NoRoomError`.
    """
    ranks = [actor for actor in actors if actor.role == LEARNER]
    members: list[tuple[Actor, ...]] = []
    for engine in (actor for actor in actors if actor.role == WORKER):
        members.append((*ranks[:tensor_parallel], engine))
        ranks = ranks[tensor_parallel:]
    members += [(rank,) for rank in ranks]
    stand_ins = [
        Actor(role=LEARNER, number=number, cpus=sum(one.cpus for one in held), gpus=sum(one.gpus for one in held))
        for number, held in enumerate(members)
    ]
    groups = pack([*stand_ins, *(actor for actor in actors if actor.role not in (LEARNER, WORKER))], nodes)
    return tuple(
        replace(
            group,
            actors=tuple(
                one for actor in group.actors for one in (members[actor.number] if actor.role == LEARNER else (actor,))
            ),
        )
        for group in groups
    )


def check_turns(
    fraction: float,
    groups: Sequence[Group],
    gpu_gib: Mapping[str, float | None],
    needs: tuple[float | None, float | None],
) -> None:
    """Raise `EnvironmentProblem` if one of the turns needs more than the memory of a GPU.

    The learner's turn: all that it needs, beside an engine that sleeps. The engine's turn: its part of the memory,
    ``fraction``, beside a learner that rests. ``needs``: GiB of the learner in a step and at rest; None if unknown.
    """
    learner_gib, resting_gib = needs
    for group in groups:
        whole = gpu_gib[group.node]
        if not group.in_turns or whole is None or learner_gib is None or resting_gib is None:
            continue
        if learner_gib + ASLEEP_GIB > whole:
            raise EnvironmentProblem(
                f"the learner needs at least {learner_gib:.1f} GiB (weights, gradients, optimizer, reference) beside "
                f"the {ASLEEP_GIB:g} GiB of an engine that sleeps (rollout.placement = colocated), and a GPU has "
                f"{whole:.1f}. Set learner.offload=optimizer, or raise learner.ranks"
            )
        if fraction * whole + resting_gib > whole:
            most = int(100 * (1 - resting_gib / whole)) / 100
            remedy = (
                f"Set rollout.vllm.memory_fraction={most:g} or less, learner.offload=optimizer, or raise learner.ranks"
                if most > 0
                else "Set learner.offload=optimizer, or raise learner.ranks"
            )
            raise EnvironmentProblem(
                f"while it samples, an engine takes {fraction:g} of {whole:.1f} GiB (rollout.vllm.memory_fraction), "
                f"and the resting learner keeps at least {resting_gib:.1f} GiB there (weights, optimizer, reference; "
                f"rollout.placement = colocated). {remedy}"
            )
