"""Checks a run against the machine it starts on, and describes which actors share a GPU."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

from rlkl.errors import EnvironmentProblem
from rlkl.recipe import Recipe
from rlkl.recipe.memory import MemoryEstimate, least_learner_gib, resting_learner_gib
from rlkl.recipe.placement import (
    LEARNER,
    WORKER,
    Actor,
    Group,
    Node,
    Placement,
    actors_of,
    memory_fraction,
    place,
    reserved_cpus,
    reward_actors,
)
from rlkl.system.machine import Machine

ACTORS_PER_CORE = 4
"""With more actors on a core, importing torch and vLLM alone takes minutes."""
PROCESS_GIB = 0.4
"""The least memory of a process that has imported torch and transformers."""
VLLM_PROCESS_GIB = 1.2
"""The least memory of a vLLM on a CPU, without weights and key-value cache (measured: 1.6 with little of a cache)."""


def place_on_machine(recipe: Recipe, machine: Machine, memory: MemoryEstimate | None) -> Placement:
    """Place all actors in a Ray that the run starts on this machine; raises `EnvironmentProblem` if they do not fit.

    Such a Ray lets actors reserve more CPUs than there are cores, so the number of actors and their memory are limited
    here. ``memory``: None if unknown.
    """
    ranks = f", learner.ranks = {recipe.learner.ranks}" if recipe.learner.ranks > 1 else ""
    check_number(len(actors_of(recipe)), f"rollout.workers = {recipe.rollout.workers}{ranks}", machine)
    node = Node(
        name="this machine",
        cpus=max(math.ceil(reserved_cpus(recipe)), machine.cpus),
        gpus=len(machine.gpus),
        gpu_memory_gib=machine.gpu_memory_gib,
    )
    placement = place(
        recipe,
        [node],
        learner_gib=least_learner_gib(recipe, memory, on_gpu=True),
        resting_gib=resting_learner_gib(recipe, memory),
    )
    _check_host_memory(recipe, machine, memory, placement)
    return placement


def check_number(actors: int, cause: str, machine: Machine) -> None:
    """Raise `EnvironmentProblem` if so many actors cannot start in a sensible time."""
    most = ACTORS_PER_CORE * machine.cpus
    if actors > most:
        raise EnvironmentProblem(
            f"{cause}: this run starts {actors} actors on this machine, which has {machine.cpus} cores and can start "
            f"at most {most} ({ACTORS_PER_CORE} per core). Lower learner.ranks, rollout.workers or the workers of "
            f"rewards in mode actor by {actors - most}, or run on a cluster (cluster.address)"
        )


def _check_host_memory(recipe: Recipe, machine: Machine, memory: MemoryEstimate | None, placement: Placement) -> None:
    """Raise `EnvironmentProblem` if the machine's memory cannot hold what the processes need at least."""
    workers, rewards = recipe.rollout.workers, len(reward_actors(recipe))
    on_cpu = not placement.on_gpus(WORKER)
    weights = memory.engine_gib if memory is not None and on_cpu else 0.0
    cache = recipe.rollout.vllm.kv_cache_gib if on_cpu and recipe.rollout.engine == "vllm" else 0
    learner_on_cpu, ranks = placement.gpus_of(LEARNER) == 0, recipe.learner.ranks
    learner = least_learner_gib(recipe, memory, on_gpu=False) if learner_on_cpu else _offloaded_gib(recipe, memory)
    process = VLLM_PROCESS_GIB if on_cpu and recipe.rollout.engine == "vllm" else PROCESS_GIB
    if (parallel := recipe.rollout.tensor_parallel) > 1:  # they divide the weights; one more process schedules
        process, cache = process * (parallel + 1), cache * parallel
    worker_gib, learner_gib = process + weights + cache, PROCESS_GIB + (learner or 0.0)
    # Rank 0 loads the whole weights into host memory. The shares of all ranks, if known and on a CPU, are larger.
    is_counted = learner_on_cpu and learner is not None
    loading_gib = memory.engine_gib if ranks > 1 and memory is not None and not is_counted else 0.0
    total = workers * worker_gib + ranks * learner_gib + loading_gib + (rewards + 1) * PROCESS_GIB
    learner_is = "the learner" if ranks == 1 else f"learner.ranks = {ranks} x"
    loads = f" and {loading_gib:.2f} while rank 0 loads the model" if loading_gib else ""
    if total > machine.memory_gib:
        raise EnvironmentProblem(
            f"this run needs at least {total:.1f} GiB of memory, and this machine has {machine.memory_gib:.1f}: "
            f"rollout.workers = {workers} x {worker_gib:.2f} (process {process:g}, weights {weights:.2f}, "
            f"rollout.vllm.kv_cache_gib = {cache}), {learner_is} {learner_gib:.2f}{loads}, the driver and "
            f"{rewards} reward actors {PROCESS_GIB:g} each. Lower rollout.workers or rollout.vllm.kv_cache_gib, train "
            "a smaller model, or run on a cluster (cluster.address)"
        )


def _offloaded_gib(recipe: Recipe, memory: MemoryEstimate | None) -> float | None:
    """Return the host memory of each rank for moments that are offloaded from a GPU; None if unknown or none."""
    if memory is None or recipe.learner.offload != "optimizer" or recipe.model.lora is not None:
        return None
    return memory.moments_gib / recipe.learner.ranks


def describe(recipe: Recipe, placement: Placement) -> list[str]:
    """Return one line for each GPU with its actors and their shares.

    On several nodes also one line for each node with actors that have no GPU. Empty on one node without GPUs.
    """
    several = len({group.node for group in placement.groups}) > 1
    fraction = memory_fraction(recipe, placement)
    lines = [
        (f"{group.node}, " if several else "") + f"GPU {', '.join(map(str, group.devices))}: " + _held(group, fraction)
        for group in placement.groups
        if group.devices
    ]
    without = [group for group in placement.groups if several and not group.devices]
    for node in dict.fromkeys(group.node for group in without):
        names = [actor.name for group in without if group.node == node for actor in group.actors]
        lines.append(f"{node}, without a GPU: {', '.join(names)}")
    return lines


def _held(group: Group, fraction: float) -> str:
    return ", ".join(_describe_actors(list(actors), fraction) for _, actors in groupby(group.actors, lambda a: a.role))


def _describe_actors(actors: Sequence[Actor], fraction: float) -> str:
    first = actors[0]
    vllm = f", vLLM memory {fraction:.3g}" if first.role == WORKER else ""
    share = f"{first.gpus:.3g}" if first.units else "in turns"
    if len(actors) == 1:
        return f"{first.name} ({share}{vllm})"
    return f"{first.role}s {', '.join(str(actor.number) for actor in actors)} ({share}{vllm} each)"


def warnings_about_gpus(placement: Placement, machine: Machine) -> Iterator[str]:
    """Warn about GPUs that stay idle, and about workers that share GPUs unevenly."""
    used = {device for group in placement.groups for device in group.devices}
    if placement.count(WORKER) and len(used) < len(machine.gpus):
        idle = len(machine.gpus) - len(used)
        yield (
            f"{idle} of {len(machine.gpus)} GPUs stay idle: raise rollout.workers by {idle}, or hide them with "
            "CUDA_VISIBLE_DEVICES"
        )
    resting = [group for group in placement.groups if group.count(LEARNER) and not group.in_turns]
    if placement.in_turns and resting:
        yield (
            f"{len(resting)} of {placement.count(LEARNER)} GPUs of the learner have no rollout worker and rest while "
            f"the others sample: set rollout.workers={placement.count(WORKER) + len(resting)}"
        )
    held = [count for group in placement.groups if group.devices and (count := group.count(WORKER))]
    if held and max(held) != min(held):
        yield (
            f"rollout.workers = {sum(held)} do not share {len(held)} GPUs evenly: some hold {max(held)}, others "
            f"{min(held)}, and a step waits for the slowest. Set rollout.workers to a multiple of {len(held)}"
        )
