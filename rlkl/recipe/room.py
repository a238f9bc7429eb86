"""Find room for actors on the nodes of a cluster and on their GPUs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

LEARNER = "learner"
WORKER = "rollout worker"

UNITS = 10_000
"""Ray counts GPUs in steps of 1/10000. All sums here are sums of such steps, so they are exact."""
_NODES_SHOWN = 8

_Spot = tuple[str, tuple[int, ...]]
"""Name of a node, and the numbers of GPUs there. Ray may number them in another order."""
_Wish = Callable[["_Space", "Actor", _Spot], tuple[float, ...]]
"""Ranks the spots for an actor; the largest is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One machine of the cluster."""

    name: str
    cpus: float
    gpus: float
    """Whole GPUs. What is free of them may end in a fraction: the rest of a GPU that another run shares."""
    gpu_memory_gib: float | None = None
    """Memory of its smallest GPU; None if unknown."""
    id: str = ""
    """Ray's name of the node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """One actor and what it reserves. ``gpus`` below 1 is a share of one GPU."""

    role: str
    """`LEARNER`, `WORKER`, or ``reward NAME``."""
    number: int
    cpus: float
    gpus: float

    @property
    def name(self) -> str:
        if self.role == LEARNER:
            return self.role if self.number == 0 else f"{self.role} rank {self.number}"
        return f"{self.role} {self.number}"

    @property
    def units(self) -> int:
        return round(self.gpus * UNITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Actors that share a GPU; or one actor alone, with several GPUs or with none.

    An engine that reserves no GPU in a group with GPUs uses those of the learner ranks there, in turns with them.
    """

    node: str
    devices: tuple[int, ...]
    actors: tuple[Actor, ...]

    @property
    def cpus(self) -> float:
        return sum(actor.cpus for actor in self.actors)

    @property
    def gpus(self) -> float:
        return sum(actor.units for actor in self.actors) / UNITS

    @property
    def in_turns(self) -> bool:
        """Whether engines use the GPUs of learner ranks while these rest."""
        return bool(self.devices) and any(actor.role == WORKER and not actor.units for actor in self.actors)

    def count(self, role: str) -> int:
        return sum(actor.role == role for actor in self.actors)


class NoRoomError(Exception):
    """One way to place the actors fails."""

    def __init__(self, actor: Actor, actors: Sequence[Actor], space: _Space) -> None:
        self.actor, self.actors, self.space = actor, actors, space

    def explain(self) -> str:
        """Return the message for the user: what is wanted, and what is left."""
        kinds = Counter((actor.role, actor.cpus, actor.gpus) for actor in self.actors)
        wanted = ", ".join(
            f"{count} x {role} ({cpus:g} CPU, {gpus:.4g} GPU)" for (role, cpus, gpus), count in kinds.items()
        )
        return (
            f"the actors of this run cannot be placed: {wanted}. For {self.actor.name} ({self.actor.cpus:g} CPU, "
            f"{self.actor.gpus:.4g} GPU) there is no room; once the others are placed, this is left: "
            f"{self.space.describe()}. An actor runs on one node, and a share of a GPU lies on one GPU. Leave "
            "rollout.gpus_per_worker and learner.gpus out (the shares then follow from the GPUs), lower them, "
            "rollout.workers, learner.ranks, rollout.cpus_per_worker, rollout.tensor_parallel or the gpus of a reward, "
            "or use a larger cluster"
        )


def pack(actors: Sequence[Actor], nodes: Sequence[Node]) -> tuple[Group, ...]:
    """Place the actors; raises `NoRoomError` if no way is found.

    First the learner's ranks, on as few nodes as possible, then the rollout workers, spread over the nodes, and all
    spread over the GPUs. If that fails: the largest actors first. If that fails, too: each where it leaves the least
    room.
    """
    largest = sorted(actors, key=lambda actor: (-actor.units, -actor.cpus))
    learner_first = sorted(largest, key=lambda actor: actor.role != LEARNER)
    try:
        return _pack_by(learner_first, nodes, _on_most_room)
    except NoRoomError:
        pass
    try:
        return _pack_by(largest, nodes, _on_most_room)
    except NoRoomError:
        return _pack_by(largest, nodes, _on_least_room)


class _Space:
    """CPUs and GPUs that are still free while actors are placed."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = {node.name: node for node in nodes}
        self.cpus = {node.name: node.cpus for node in nodes}
        self.units = {node.name: _units(node.gpus) for node in nodes}
        self.roles: dict[str, Counter[str]] = {node.name: Counter() for node in nodes}
        """Number of actors of each role on each node."""

    def take(self, actor: Actor, wish: _Wish) -> _Spot | None:
        """Reserve room for one actor; None if no node has it."""
        wanted, each = (-(-actor.units // UNITS), UNITS) if actor.units > UNITS else (1, actor.units)
        options: list[_Spot] = []
        for name, cpus in self.cpus.items():
            gpus = [gpu for gpu, units in enumerate(self.units[name]) if units >= each]
            if cpus < actor.cpus or (actor.units and len(gpus) < wanted):
                continue
            if actor.units == 0:
                options.append((name, ()))
            elif wanted > 1:
                options.append((name, tuple(gpus[:wanted])))
            else:
                options += [(name, (gpu,)) for gpu in gpus]
        if not options:
            return None
        name, gpus = max(options, key=lambda spot: wish(self, actor, spot))
        self.cpus[name] -= actor.cpus
        self.roles[name][actor.role] += 1
        for gpu in gpus:
            self.units[name][gpu] -= each
        return name, gpus

    def whole_gpus(self, name: str) -> int:
        """Return how many GPUs of a node nobody uses yet."""
        return sum(units == UNITS for units in self.units[name])

    def describe(self) -> str:
        """Return what is still free on each node, for an error message."""
        lines = [
            f"{name}: {', '.join([f'{self.cpus[name]:g} of {node.cpus:g} CPUs', *self._free_gpus(name)])}"
            for name, node in list(self._nodes.items())[:_NODES_SHOWN]
        ]
        more = len(self._nodes) - len(lines)
        return "; ".join(lines) + (f"; and {more} more nodes" if more else "")

    def _free_gpus(self, name: str) -> list[str]:
        return [f"{free / UNITS:.4g} of GPU {gpu}" for gpu, free in enumerate(self.units[name])] or ["no GPU"]


def _on_most_room(space: _Space, actor: Actor, spot: _Spot) -> tuple[float, ...]:
    """Rank spots: the emptiest GPU first, then the ranks of a learner together and the rollout workers apart."""
    name, gpus = spot
    free = float(space.units[name][gpus[0]]) if len(gpus) == 1 else 0.0
    beside = {LEARNER: space.roles[name][LEARNER], WORKER: -space.roles[name][WORKER]}.get(actor.role, 0)
    return free, beside, space.whole_gpus(name) if gpus else 0, space.cpus[name]


def _on_least_room(space: _Space, actor: Actor, spot: _Spot) -> tuple[float, ...]:
    name, gpus = spot
    return (-float(space.units[name][gpus[0]]) if len(gpus) == 1 else -space.cpus[name],)


def _pack_by(actors: Sequence[Actor], nodes: Sequence[Node], wish: _Wish) -> tuple[Group, ...]:
    space = _Space(nodes)
    shared: dict[_Spot, list[Actor]] = {}
    alone: list[Group] = []
    for actor in actors:
        found = space.take(actor, wish)
        if found is None:
            raise NoRoomError(actor, sorted(actors, key=lambda one: (-one.units, -one.cpus)), space)
        if found[1]:
            shared.setdefault(found, []).append(actor)
        else:
            alone.append(Group(node=found[0], devices=(), actors=(actor,)))
    on_gpus = [Group(node=node, devices=gpus, actors=tuple(held)) for (node, gpus), held in shared.items()]
    order = {node.name: number for number, node in enumerate(nodes)}
    return (*sorted(on_gpus, key=lambda group: (order[group.node], group.devices)), *alone)


def _units(gpus: float) -> list[int]:
    """Return the free steps of each GPU."""
    whole, rest = divmod(round(gpus * UNITS), UNITS)
    return [UNITS] * whole + ([rest] if rest else [])
