"""The processes of a publish by group: two ranks of a learner, and two engines. Run by `tests.ranks.run_processes`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import Shard, distribute_tensor

from rlkl.errors import WeightSyncError
from rlkl.learner.ranks import LOOPBACK, Ranks, open_store
from rlkl.models.sharding import whole
from rlkl.weights.buckets import Manifest, Outline
from rlkl.weights.group import Arrival, Place, PublishGroup, arrive, damaged, send
from tests.ranks import join

RANKS, ENGINES = 2, 2
MEMBERS = ("the learner", "engine 0", "engine 1")
DEADLINE_S = 15.0
NAMES = [f"layer.{number}.weight" for number in range(6)]


def tensors(version: int) -> dict[str, Tensor]:
    """Weights of the learner: odd sizes, two precisions, one number alone, one tensor larger than a bucket."""
    generator = torch.Generator().manual_seed(version)
    shapes = [(3, 5), (7,), (), (40, 30), (2, 2), (9, 3)]
    return {
        name: torch.randn(shape, generator=generator).to(torch.bfloat16 if number % 2 else torch.float32)
        for number, (name, shape) in enumerate(zip(NAMES, shapes, strict=True))
    }


def manifest(version: int) -> Manifest:
    """Several buckets."""
    listed = [
        Outline(name=name, dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape))
        for name, tensor in tensors(version).items()
    ]
    return Manifest(version=version, tensors=tuple(listed), bucket_bytes=128)


class MeetingPoint:
    """A folder through which the processes tell each other the port of a group's store, and what they saw."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, name: str) -> object:
        store = open_store(LOOPBACK, size=1, timeout_s=DEADLINE_S)
        (self._folder / f"{name}.new").write_text(str(store.port))
        (self._folder / f"{name}.new").rename(self._folder / f"{name}.port")
        return store

    def place(self, name: str, rank: int) -> Place:
        self.wait_for(f"{name}.port")
        port = int((self._folder / f"{name}.port").read_text())
        return Place(host=LOOPBACK, port=port, name=name, members=MEMBERS, rank=rank, timeout_s=DEADLINE_S)

    def wait_for(self, file: str) -> None:
        end = time.monotonic() + 120
        while not (self._folder / file).exists():
            assert time.monotonic() < end
            time.sleep(0.01)

    def report(self, who: str, **seen: object) -> None:
        (self._folder / f"{who}.json").write_text(json.dumps(seen))


class DictEngine:
    """Holds tensors by name. A test gives it a fault."""

    def __init__(self, fault: str) -> None:
        self.held: dict[str, Tensor] = {}
        self._fault = fault
        self._buckets = 0

    def load(self, named: Sequence[tuple[str, Tensor]]) -> frozenset[str]:
        self._buckets += 1
        if self._fault == "dies" and self._buckets == 2:
            os._exit(0)
        if self._fault == "stalls" and self._buckets == 2:
            time.sleep(DEADLINE_S + 3)
        for name, tensor in named:
            if self._fault == "other shape" and name == NAMES[3]:
                raise ValueError(f"{name} has shape 40 x 31 here")
            if self._fault == "skips" and name == NAMES[4]:
                continue
            self.held[name] = tensor
        return frozenset(NAMES) - {name for name, _ in named if name in self.held}


class Flipping(PublishGroup):
    """Receives one bit of one tensor wrong."""

    def _receive_bytes(self, bucket: object, version: int) -> Tensor:
        buffer_N = super()._receive_bytes(bucket, version)  # pyright: ignore[reportArgumentType]
        if any(outline.name == NAMES[1] for outline in bucket.tensors):  # pyright: ignore[reportAttributeAccessIssue]
            dict(bucket.views(buffer_N))[NAMES[1]].view(torch.int16)[4] ^= 8  # pyright: ignore[reportAttributeAccessIssue]
        return buffer_N


def take_part(number: int, folder: Path, fault: str) -> None:
    """Publish version 1 with a fault (``none`` for none), and version 2 in a new group if the first ended in an error.

    Each process writes what it saw to ``WHO.json``.
    """
    point = MeetingPoint(folder)
    if number < RANKS:
        _learn(join(folder, "ranks", number, RANKS), point, fault)
    else:
        _host(number - RANKS, point, fault)


def _learn(ranks: Ranks, point: MeetingPoint, fault: str) -> None:
    seen: dict[str, object] = {}
    for version, name in ((1, "publish-0"), (2, "publish-1")):
        store = point.open(name) if ranks.rank == 0 else None
        started = time.monotonic()
        group, problem = None, None
        try:
            group = PublishGroup(point.place(name, 0), store=store) if ranks.rank == 0 else None
        except WeightSyncError as error:
            problem = error
        if not ranks.sum_(torch.tensor([float(problem is not None)])):  # as the driver does: first all join
            try:
                sums = send(_gathered(version, ranks, fault), manifest(version), group=group, sum_=ranks.sum_)
                seen[f"version {version}"] = sums
            except WeightSyncError as error:
                problem = error
        if problem is not None:
            seen[f"version {version}"] = repr(problem)
        seen[f"seconds {version}"] = time.monotonic() - started
        if group is not None:
            group.leave()
        ranks.barrier()
        if fault in ("dies", "absent"):
            point.wait_for("engine 0.json")  # it asks the store of this process how far the others have come
            break
        fault = "none"
    point.report(f"rank {ranks.rank}", **seen)
    ranks.leave()


def _gathered(version: int, ranks: Ranks, fault: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors, gathered from shards."""
    assert ranks.mesh is not None
    for name, tensor in tensors(version).items():
        if fault == "learner skips" and name == NAMES[4]:
            continue
        if fault == "learner's shape" and name == NAMES[3]:
            tensor = tensor.T
        yield name, whole(distribute_tensor(tensor, ranks.mesh, [Shard(0)]) if tensor.ndim else tensor)


def _host(engine: int, point: MeetingPoint, fault: str) -> None:
    mine = fault if engine == 1 else "none"
    seen: dict[str, object] = {}
    for version, name in ((1, "publish-0"), (2, "publish-1")):
        if mine == "absent":
            return
        held = DictEngine(mine)
        started = time.monotonic()
        try:
            kind: Callable[[Place], PublishGroup] = Flipping if mine == "flips" else PublishGroup
            group = kind(point.place(name, 1 + engine))
            arrival = arrive(group, manifest(version), held.load)
            group.leave()
        except WeightSyncError as error:
            arrival = Arrival(process=MEMBERS[1 + engine], checksums={}, problem=error)
        wanted = tensors(version)
        seen |= {
            f"version {version}": None if arrival.problem is None else repr(arrival.problem),
            f"seconds {version}": time.monotonic() - started,
            f"sums {version}": dict(arrival.checksums),
            f"unreached {version}": arrival.unreached,
            f"equal {version}": [
                name for name in wanted if name in held.held and torch.equal(held.held[name], wanted[name])
            ],
        }
        if fault in ("dies", "absent"):
            break
        mine = "none"
    point.report(f"engine {engine}", **seen)


def damage(sent: dict[str, int], report: dict[str, dict[str, int]]) -> tuple[str, ...]:
    """Return `damaged` for what an engine reported."""
    arrival = Arrival(process="engine 1", checksums={})
    return damaged(sent, [replace(arrival, checksums=report["sums 1"])])
