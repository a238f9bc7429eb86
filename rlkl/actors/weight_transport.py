"""Transports of weights from the learner's actors to the workers: Ray's object store, or a broadcast."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import ray

from rlkl.actors import stacks
from rlkl.actors.calls import wait, wait_all
from rlkl.actors.learners import LEARNER, LearnerRanks
from rlkl.actors.turns import MemoryTurns
from rlkl.actors.workers import Publish, Workers
from rlkl.errors import PeerFailedError, RlklError
from rlkl.weights import GroupReceipt, Probes, Receipt
from rlkl.weights.buckets import Manifest
from rlkl.weights.group import Place, abandon

_SHARE = 0.9
"""Members of a group give up after this share of the driver's deadline, so that their own errors arrive."""
_FETCH_S = 10.0
"""An answer that is there may still have to travel."""
_GRACE_S = 15.0
"""After the learner has failed to send: what the engines report until then may be the cause."""


class WeightTransport(Protocol):
    """One way for weights to travel."""

    def publish(self, version: int, probes: Probes, check: Callable[[str, Receipt], object]) -> list[Receipt]:
        """Send the learner's weights to every worker, which then scores the probes; return the reports in order.

        ``check`` is called with the name and the report of each worker that takes the place of one that failed, before
        it serves; see `rlkl.actors.workers.Publish`.
        """
        ...

    def package(self) -> Any:
        """Return a reference to a package of the last weights, to compare them with those of the workers."""
        ...


class HostTransport:
    """Through the memory of the machines: Ray's object store holds one copy on each node."""

    def __init__(self, ranks: LearnerRanks, workers: Workers, turns: MemoryTurns | None = None) -> None:
        """Send from ``ranks`` to ``workers``; with ``turns``, engines wake once the weights are packed."""
        self._ranks, self._workers, self._turns = ranks, workers, turns
        self._package: Any = None

    def publish(self, version: int, probes: Probes, check: Callable[[str, Receipt], object]) -> list[Receipt]:
        """See `WeightTransport.publish`. A worker that fails is replaced, and the new one takes in the same weights."""
        package = self._package = self._ranks.send("pack", version)
        self._ranks.collect("pack the weights")  # a learner that failed is not taken for a worker that did
        if self._turns is not None:
            self._turns.to_engines(self._ranks)
        return self._workers.publish(Publish(receive=lambda actor: actor.receive.remote(package, probes), check=check))

    def package(self) -> Any:
        """See `WeightTransport.package`."""
        return self._package


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSettings:
    """The members of a group."""

    host: str
    """Address of the machine of the learner's rank 0."""
    processes: int
    """Processes of each engine (``rollout.tensor_parallel``)."""
    backend: str
    """``nccl`` or ``gloo``; see `rlkl.weights.group.Place`."""


class GroupTransport:
    """By broadcast from the learner's rank 0 to every process of every engine (`rlkl.weights.group`).

    The group is built at the first publish. It is built anew, under another name, at the publish after a failure.
    """

    def __init__(self, ranks: LearnerRanks, workers: Workers, settings: GroupSettings) -> None:
        self._ranks, self._workers, self._settings = ranks, workers, settings
        self._port: int | None = None
        self._built = 0
        self._is_joined = False
        self._answers: list[Any] = []
        self._version = 0

    def publish(self, version: int, probes: Probes, check: Callable[[str, Receipt], object]) -> list[Receipt]:
        """See `WeightTransport.publish`. Raises the error of the process that failed first, if it is known.

        No worker is replaced: a group cannot take in a new member between two publishes.
        """
        if not self._is_joined:
            self._join()
        manifest: Manifest = self._ranks.call("list the weights", "manifest", version)
        self._is_joined = False  # until all have received: a group does not survive a failure
        workers = self._workers.all_serving()
        self._answers = [worker.actor.receive_from_group.remote(manifest, probes) for worker in workers]
        self._version = version
        sums: dict[str, int] = self._call_ranks("send weights", "send", manifest)
        answers: list[GroupReceipt] = self._wait("take in weights")
        self._is_joined = True
        return [answer.compared(sums) for answer in answers]

    def package(self) -> Any:
        """See `WeightTransport.package`. The learner packs its weights again, in host memory."""
        return self._ranks.send("pack_again", self._version)

    def _join(self) -> None:
        """Let the learner and all engines join a new group."""
        settings, timeout_s = self._settings, self._workers.timeout_s * _SHARE
        if self._port is None:
            self._port = self._ranks.call("open a store", "open_group", settings.host, timeout_s)
        assert self._port is not None
        size, workers = settings.processes, self._workers.all_serving()
        engines = [name if size == 1 else f"{name}, process {n}" for name in self._workers.names for n in range(size)]
        places = [
            Place(
                host=settings.host,
                port=self._port,
                name=f"publish-{self._built}",
                members=(LEARNER, *engines),
                rank=rank,
                timeout_s=timeout_s,
                backend=settings.backend,
            )
            for rank in (0, *accumulate([size] * (len(workers) - 1), initial=1))
        ]
        self._built += 1
        joined = zip(workers, places[1:], strict=True)
        self._answers = [worker.actor.join_group.remote(place) for worker, place in joined]
        try:
            self._call_ranks("join the group", "join_group", places[0])
            self._wait("join the group")
        except RlklError:
            abandon(places[0])  # the learner would wait for the others until its deadline
            raise
        self._is_joined = True

    def _call_ranks(self, what: str, method: str, argument: Any) -> Any:
        """Make a call on the learner while the workers do their part; raise the cause rather than its effect.

        A worker that fails by itself is not waited out: the learner may wait for it until its deadline.
        """
        ours = self._ranks.send(method, argument)
        start = time.monotonic()
        end = start + self._workers.timeout_s
        theirs = dict(zip(self._answers, self._workers.names, strict=True))
        while theirs:
            done, _ = ray.wait([ours, *theirs], timeout=max(end - time.monotonic(), 0.0))
            if not done or ours in done:
                break
            if (error := _own_error(done[0], theirs.pop(done[0]), what)) is not None:
                self._ranks.forget()
                raise error
        try:
            return self._ranks.collect(what, spent_s=time.monotonic() - start)[0]
        except RlklError as error:
            raise self._cause(what, error) from None

    def _wait(self, what: str) -> list[Any]:
        """Wait for the workers' part; raise the cause rather than its effect."""
        workers = self._workers
        try:
            return wait_all(self._answers, who=workers.names, what=what, timeout_s=workers.timeout_s)
        except RlklError as error:
            raise self._cause(what, error) from None

    def _cause(self, what: str, error: RlklError) -> RlklError:
        """Return the error of a worker that failed by itself, or ``error`` if there is none.

        If there is none, a worker hangs: keep the stacks of those that have not answered.
        """
        if not isinstance(error, PeerFailedError):
            return error
        done, hanging = ray.wait(self._answers, num_returns=len(self._answers), timeout=_GRACE_S)
        names = dict(zip(self._answers, self._workers.names, strict=True))
        causes = (_own_error(ref, names[ref], what) for ref in self._answers if ref in done)
        cause = next((cause for cause in causes if cause is not None), None)
        if cause is None and hanging:
            return PeerFailedError(f"{error}{stacks.keep(str(error), {names[ref]: ref for ref in hanging})}")
        return cause or error


def _own_error(ref: Any, name: str, what: str) -> RlklError | None:
    """Return the error of a call that has ended, unless it is the effect of a failure elsewhere."""
    try:
        wait(ref, who=name, what=what, timeout_s=_FETCH_S)
    except PeerFailedError:
        return None
    except RlklError as error:
        return error
    return None
