"""Assign the actors of a run to GPUs, from the recipe and the resources of each node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from rlkl.errors import EnvironmentProblem
from rlkl.recipe import Recipe
from rlkl.recipe.colocation import IN_TURNS_SHARE, check_turns, colocates, pack_in_turns
from rlkl.recipe.device import check_cuda
from rlkl.recipe.room import LEARNER, UNITS, WORKER, Actor, Group, Node, NoRoomError, pack

__all__ = ["LEARNER", "WORKER", "Actor", "Group", "Node", "Placement", "place", "place_rewards"]

LEARNER_CPUS = 1
"""CPUs that the learner reserves in Ray. It computes on more: the rollout workers wait meanwhile."""
USABLE_GPU_MEMORY = 0.9
"""Actors divide this share of a GPU's memory; CUDA contexts and fragmentation take the rest."""

_MOST_ON_ONE_GPU = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """All actors of a run, each in exactly one group.

    2 rollout workers and the learner on a node with 2 GPUs make 2 groups: the learner with 1 GPU, and both workers with
    0.5 GPU each.
    """

    groups: tuple[Group, ...]

    @property
    def actors(self) -> tuple[Actor, ...]:
        return tuple(actor for group in self.groups for actor in group.actors)

    def count(self, role: str) -> int:
        return sum(group.count(role) for group in self.groups)

    def gpus_of(self, role: str) -> float:
        """Return the GPUs that each actor of ``role`` reserves."""
        return next((actor.gpus for actor in self.actors if actor.role == role), 0.0)

    def on_gpus(self, role: str) -> bool:
        """Return whether the actors of ``role`` use GPUs, their own or in turns with others."""
        return any(group.devices and group.count(role) for group in self.groups)

    @property
    def in_turns(self) -> bool:
        """Whether engines use the learner's GPUs while it rests."""
        return any(group.in_turns for group in self.groups)


def part(actors: int) -> float:
    """Return 1/``actors`` of a GPU, rounded down to Ray's steps: the parts together never exceed one GPU."""
    return UNITS // actors / UNITS


def reward_actors(recipe: Recipe) -> list[Actor]:
    """Return the actors of all rewards in mode ``actor``. Rewards of one name are numbered through."""
    actors: list[Actor] = []
    started: Counter[str] = Counter()
    for reward in [*recipe.rewards, *(recipe.eval.rewards if recipe.eval else ())]:
        if reward.mode == "actor":
            role = f"reward {reward.name or reward.function}"
            for _ in range(reward.workers):
                actors.append(Actor(role=role, number=started[role], cpus=reward.cpus, gpus=reward.gpus))
                started[role] += 1
    return actors


def actors_of(recipe: Recipe, *, worker: float = 0.0, learner: float = 0.0) -> list[Actor]:
    """Return all actors of a run. ``worker``, ``learner``: GPUs of each rollout worker and of each learner rank."""
    return [
        *(
            Actor(role=LEARNER, number=number, cpus=LEARNER_CPUS, gpus=learner)
            for number in range(recipe.learner.ranks)
        ),
        *(
            Actor(role=WORKER, number=number, cpus=recipe.rollout.cpus_per_worker, gpus=worker)
            for number in range(recipe.rollout.workers)
        ),
        *reward_actors(recipe),
    ]


def reserved_cpus(recipe: Recipe) -> float:
    """Return the CPUs that all actors of a run reserve together."""
    return sum(actor.cpus for actor in actors_of(recipe))


def place(
    recipe: Recipe,
    nodes: Sequence[Node],
    *,
    learner_gib: float | None = None,
    resting_gib: float | None = None,
) -> Placement:
    """Place the learner, the rollout workers and the reward actors onto the nodes and their GPUs.

    GPU shares that the recipe leaves out follow from the GPUs. With enough of them each actor has one. With fewer, but
    at least two, the learner has one and the workers share the others. On a single GPU all get equal parts. A worker
    with ``rollout.tensor_parallel`` has so many GPUs of one node. With ``rollout.placement: colocated`` each rank has a
    GPU, and the workers use those.

    ``learner_gib`` is the least memory that the learner needs on its GPU in a step, ``resting_gib`` while engines
    sample; None if unknown.

    Raises `EnvironmentProblem` if there is no room, or if the actors on a GPU need more than its memory.
    """
    _check_shares(recipe, nodes)
    try:
        placement = Placement(groups=_first_that_fits(recipe, nodes))
    except NoRoomError as error:
        raise EnvironmentProblem(error.explain()) from None
    gpu_gib = {node.name: node.gpu_memory_gib for node in nodes}
    if placement.in_turns:
        check_turns(memory_fraction(recipe, placement), placement.groups, gpu_gib, (learner_gib, resting_gib))
    else:
        _check_memory(recipe, placement, gpu_gib, learner_gib)
    return placement


def nodes_for(groups: Sequence[Group], nodes: Sequence[Node]) -> list[str] | None:
    """Return a node for each group, by what is free on the ``nodes`` now; None if there is no room."""
    stand_ins = [
        Actor(role=_role_of(group), number=number, cpus=group.cpus, gpus=group.gpus)
        for number, group in enumerate(groups)
    ]
    try:
        placed = pack(stand_ins, nodes)
    except NoRoomError:
        return None
    node_of = {actor.number: group.node for group in placed for actor in group.actors}
    return [node_of[number] for number in range(len(groups))]


def _role_of(group: Group) -> str:
    """Return the role that decides where a group should lie."""
    roles = [actor.role for actor in group.actors]
    return next((role for role in (LEARNER, WORKER) if role in roles), roles[0])


def place_rewards(recipe: Recipe, nodes: Sequence[Node]) -> Placement:
    """Place the reward actors alone; raises `EnvironmentProblem` if there is no room."""
    try:
        return Placement(groups=pack(reward_actors(recipe), nodes))
    except NoRoomError as error:
        raise EnvironmentProblem(error.explain()) from None


def memory_fraction(recipe: Recipe, placement: Placement) -> float:
    """Return the share of its GPU's memory that each vLLM may take: by the recipe, else by its share of the GPU.

    A worker with half a GPU may take 0.45 of the memory. Without GPUs the number has no effect.
    """
    if recipe.rollout.vllm.memory_fraction is not None:
        return recipe.rollout.vllm.memory_fraction
    if placement.in_turns:
        return IN_TURNS_SHARE
    return round(USABLE_GPU_MEMORY * min(placement.gpus_of(WORKER) or 1.0, 1.0), 4)


def _first_that_fits(recipe: Recipe, nodes: Sequence[Node]) -> tuple[Group, ...]:
    """Try the GPU shares one after the other; raises the `NoRoomError` of the last one if none fits."""
    worker, learner = recipe.rollout.gpus_per_worker or 0.0, recipe.learner.gpus or 0.0
    if colocates(recipe, nodes):
        tensor_parallel = recipe.rollout.tensor_parallel
        return pack_in_turns(actors_of(recipe, learner=1.0), nodes, tensor_parallel=tensor_parallel)
    pack(actors_of(recipe, worker=worker, learner=learner), nodes)  # if not even the CPUs suffice, this is the reason
    failure: NoRoomError | None = None
    for worker, learner in _candidates(recipe, nodes):
        try:
            return pack(actors_of(recipe, worker=worker, learner=learner), nodes)
        except NoRoomError as error:
            failure = error
    assert failure is not None
    raise failure


def _candidates(recipe: Recipe, nodes: Sequence[Node]) -> Iterator[tuple[float, float]]:
    """Yield the GPUs of each worker and of the learner, best first. Shares that the recipe names never change."""
    has_gpus = any(node.gpus for node in nodes)
    worker, learner = recipe.rollout.gpus_per_worker, recipe.learner.gpus
    if worker is None and (not has_gpus or not recipe.rollout.workers):
        worker = 0.0
    if worker is None and recipe.rollout.tensor_parallel > 1:
        worker = float(recipe.rollout.tensor_parallel)
    if learner is None and (not has_gpus or recipe.learner.device == "cpu"):
        learner = 0.0
    if learner is None and recipe.learner.ranks > 1:
        learner = 1.0
    parts = [part(actors) for actors in range(1, _MOST_ON_ONE_GPU + 1)]
    if worker is not None or learner is not None:
        yield from product(parts if worker is None else [worker], parts if learner is None else [learner])
        return
    if _free_gpus(nodes, reward_actors(recipe)) >= 2:
        yield from ((share, 1.0) for share in parts)
    yield from ((share, share) for share in parts)


def _free_gpus(nodes: Sequence[Node], rewards: Sequence[Actor]) -> float:
    """Return how many GPUs are left whole once the reward actors are placed."""
    try:
        used = {(group.node, device) for group in pack(rewards, nodes) for device in group.devices}
    except NoRoomError:
        return 0
    return sum(node.gpus for node in nodes) - len(used)


def _check_shares(recipe: Recipe, nodes: Sequence[Node]) -> None:
    """Raise `EnvironmentProblem` for GPU shares that cannot work on any node."""
    shares = {"rollout.gpus_per_worker": recipe.rollout.gpus_per_worker, "learner.gpus": recipe.learner.gpus}
    shares |= {f"the gpus of the {actor.role}": actor.gpus for actor in reward_actors(recipe)}
    for key, share in shares.items():
        if share is not None and share > 1 and share != int(share):
            raise EnvironmentProblem(
                f"{key} = {share:g}: above 1, Ray gives whole GPUs only; expected 0 to 1, 2, 3, ..."
            )
    if recipe.learner.ranks > 1 and recipe.learner.gpus is not None and 0 < recipe.learner.gpus < 1:
        raise EnvironmentProblem(
            f"learner.gpus = {recipe.learner.gpus:g} with learner.ranks = {recipe.learner.ranks}: two ranks cannot "
            "share a GPU. Leave learner.gpus out, so that each rank gets one, or set learner.ranks=1"
        )
    parallel, share = recipe.rollout.tensor_parallel, recipe.rollout.gpus_per_worker
    if parallel > 1 and share not in (None, parallel) and any(node.gpus for node in nodes):
        raise EnvironmentProblem(
            f"rollout.gpus_per_worker = {share:g} with rollout.tensor_parallel = {parallel}: each process of an engine "
            f"has a GPU of its own. Leave rollout.gpus_per_worker out, or set it to {parallel}"
        )
    check_cuda(recipe.learner.device, gpus=recipe.learner.gpus, has_cuda=any(node.gpus for node in nodes))


def _check_memory(
    recipe: Recipe, placement: Placement, gpu_gib: dict[str, float | None], learner_gib: float | None
) -> None:
    """Raise `EnvironmentProblem` if the actors on one GPU need more than its memory."""
    fraction = memory_fraction(recipe, placement) if recipe.rollout.engine != "hf" else 0.0
    for group in placement.groups:
        if not group.devices:
            continue
        workers, has_learner = group.count(WORKER), group.count(LEARNER) > 0
        taken = round(workers * fraction, 6)
        others = [actor.name for actor in group.actors if actor.role != WORKER]
        vllm = (
            f"vLLM takes {workers} x {fraction:g} = {taken:g} of the memory of one GPU (rollout.vllm.memory_fraction)"
        )
        remedy = (
            "Leave rollout.vllm.memory_fraction out, so that it follows from the workers' shares of the GPU "
            f"(here {USABLE_GPU_MEMORY * min(placement.gpus_of(WORKER), 1.0):.4g}), lower it, or use fewer "
            "rollout.workers or more GPUs"
        )
        if workers and (taken > 1 or (others and taken == 1)):
            rest = f" and leaves nothing for the {', '.join(others)} there" if others else ""
            raise EnvironmentProblem(f"{vllm}{rest}. {remedy}")
        whole = gpu_gib[group.node]
        if has_learner and learner_gib is not None and whole is not None and taken * whole + learner_gib > whole:
            raise EnvironmentProblem(
                f"the learner needs at least {learner_gib:.1f} GiB (weights, gradients, optimizer, reference) on a GPU "
                f"of {whole:.1f} GiB"
                + (f", where {vllm}, {taken * whole:.1f} GiB. {remedy}" if workers else ".")
                + " Train adapters (model.lora={}) to need less"
            )
