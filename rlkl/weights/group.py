"""Sending weights by broadcast: the learner's rank 0 and every process of every engine form one process group.

The group is built beside the default group of torch.distributed, which learner and engines use for themselves. For each
bucket the learner sends a header, then the bytes. Then all members report whether they have taken it in, so that one
that failed is known to all at once. Every wait has a deadline. After a failure the group is of no further use: each
member leaves it, and the next publish builds another under a new name.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import (
    AllreduceOptions,
    BroadcastOptions,
    PrefixStore,
    ProcessGroupGloo,
    TCPStore,
)

from rlkl.errors import PeerFailedError, WeightSyncError
from rlkl.weights.bits import bits_of, checksum
from rlkl.weights.buckets import Bucket, Manifest

_LOOPBACK = "127.0.0.1"
_POLL_S = 0.001
_LOOK_AGAIN_S = 0.02
_ABANDONED = "abandoned"
_ROUNDED_S = 0.05
"""Waits of torch.distributed may end so much before their deadline."""
_LOOK_S = 5.0
"""The longest wait for the store when a failure is explained."""

Named = tuple[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The place of one process in a group."""

    host: str
    port: int
    """Port of the store where the members meet, on the learner's rank 0."""
    name: str
    """Name of the group: no two groups of a run have the same."""
    members: tuple[str, ...]
    """Names of all members for messages; the learner is the first."""
    rank: int
    timeout_s: float
    """Deadline for joining, and for each publish as a whole."""
    backend: str = "gloo"
    """``nccl`` if every member has a GPU of its own; ``gloo`` sends through host memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """The report of one engine process on a publish."""

    process: str
    checksums: Mapping[str, int]
    """Sums of the bits that arrived, by tensor."""
    unreached: tuple[str, ...] = ()
    """Parameters of this process that no tensor of any bucket reached."""
    problem: WeightSyncError | None = None
    """Set if this process could not take the weights in. vLLM's processes pass on raised errors only as text."""


class PublishGroup:
    """This process as a member of a group."""

    def __init__(self, place: Place, *, device: torch.device | None = None, store: Any = None) -> None:
        """Join the group; wait until all members have joined.

        ``device``: where the tensors are, with ``nccl``. ``store``: the learner's own store, in its process. Raises
        `WeightSyncError` at the deadline, and names the members that are missing.
        """
        self.place = place
        self.me = place.members[place.rank]
        self.device = torch.device("cpu") if device is None or place.backend == "gloo" else device
        self._end = time.monotonic() + place.timeout_s
        self._control: Any = None
        self._data: Any = None
        with self._explained("join the group"):
            timeout = timedelta(seconds=place.timeout_s)
            host, port = place.host, place.port
            self._tcp = TCPStore(host, port, None, is_master=False, timeout=timeout) if store is None else store
            self._store = PrefixStore(place.name, self._tcp)
            self._await_members()
            self._control = _gloo(PrefixStore("control", self._store), place, self._left())
            self._data = self._control if place.backend == "gloo" else _nccl(self._store, place, self._left())

    def _await_members(self) -> None:
        keys = {f"joined-{rank}": name for rank, name in enumerate(self.place.members)}
        self._store.set(f"joined-{self.place.rank}", "yes")
        while not self._store.check(list(keys)):
            if self._store.check([_ABANDONED]):
                raise PeerFailedError(f"{self.me} left the group {self.place.name}: another member cannot join it")
            if time.monotonic() > self._end:
                missing = [name for key, name in keys.items() if not self._store.check([key])]
                raise PeerFailedError(
                    f"{self.me} waited {self.place.timeout_s:g} s (cluster.call_timeout_s) for all members of the "
                    f"group {self.place.name}; missing: {', '.join(missing) or 'none'}"
                )
            time.sleep(_LOOK_AGAIN_S)

    def send(self, bucket: Bucket, buffer_N: Tensor, *, version: int, problem: str | None = None) -> None:
        """Send one bucket to all engines and wait until they have taken it in; with a ``problem``, make them give up.

        Raises `WeightSyncError` with the problem, or `PeerFailedError`.
        """
        header = torch.tensor([version, bucket.number, bucket.bytes, problem is not None])
        with self._explained(f"send {bucket}"):
            self._broadcast(self._control, header)
            if problem is None:
                _finish(self.device)  # a broadcast must not overtake the gathers that other streams still run
                self._broadcast(self._data, buffer_N)
                _finish(self.device)
        if problem is not None:
            raise WeightSyncError(problem)
        self._report(bucket, failed=False)

    def receive(self, manifest: Manifest, load: Callable[[Sequence[Named]], None]) -> dict[str, int]:
        """Receive all buckets, ``load`` each, and return the checksum of every tensor that arrived.

        ``load`` may keep the tensors: each bucket has memory of its own. Raises `WeightSyncError` if ``load`` fails,
        `PeerFailedError` if another member does. The process has then left the group.
        """
        sums: dict[str, int] = {}
        with self._leaving_after_a_failure():
            self.start_clock()
            for bucket in manifest.buckets():
                named = list(bucket.views(self._receive_bytes(bucket, manifest.version)))
                sums |= _checksums(named)
                try:
                    load(named)
                except Exception as error:
                    with suppress(PeerFailedError):
                        self._report(bucket, failed=True)
                    raise WeightSyncError(f"{self.me} could not load {bucket}: {error}") from error
                self._report(bucket, failed=False)
        return sums

    def _receive_bytes(self, bucket: Bucket, version: int) -> Tensor:
        header = torch.zeros(4, dtype=torch.int64)
        with self._explained(f"receive {bucket}"):
            self._broadcast(self._control, header)
            if header[3]:
                raise PeerFailedError(f"{self.me} was told by {self.place.members[0]} that it cannot send {bucket}")
            if header[:3].tolist() != [version, bucket.number, bucket.bytes]:
                raise WeightSyncError(
                    f"{self.me} expected {bucket} of version {version} with {bucket.bytes} bytes; the learner sends "
                    f"bucket {header[1]} of version {header[0]} with {header[2]} bytes"
                )
            # Fresh memory: vLLM's reload keeps the tensors until a layer is complete.
            buffer_N = torch.empty(bucket.bytes, dtype=torch.uint8, device=self.device)
            self._broadcast(self._data, buffer_N)
            _finish(self.device)
        return buffer_N

    def start_clock(self) -> None:
        """Give the coming publish its deadline."""
        self._end = time.monotonic() + self.place.timeout_s

    def leave(self) -> None:
        """Leave the group without waiting for anybody; the others notice it. Safe to call twice."""
        if self._data is not None and self._data is not self._control:
            self._data.abort()
        self._data = self._control = None  # gloo closes its connections with the last reference

    def _report(self, bucket: Bucket, *, failed: bool) -> None:
        """Share with all members whether this process has taken in a bucket, and wait for their reports.

        Raises `PeerFailedError` if another one has failed. Nobody goes on to the next bucket before all are done.
        """
        flags = torch.zeros(len(self.place.members), dtype=torch.int64)
        flags[self.place.rank] = failed
        options = AllreduceOptions()
        options.timeout = self._left()
        with self._explained(f"finish {bucket}"):
            self._control.allreduce([flags], options).wait()
        names = [self.place.members[rank] for rank in flags.nonzero()[:, 0].tolist()]
        if names and not failed:
            raise PeerFailedError(f"{self.me}: {', '.join(names)} could not load {bucket}")

    def _broadcast(self, group: Any, tensor: Tensor) -> None:
        options = BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        options.timeout = self._left()
        work = group.broadcast([tensor], options)
        if group is not self._control:  # NCCL has no deadline of its own for a wait on the host
            while not work.is_completed() and time.monotonic() < self._end:
                time.sleep(_POLL_S)
            if not work.is_completed():
                raise RuntimeError("the broadcast did not end within its deadline")
        work.wait()

    def _left(self) -> timedelta:
        return timedelta(seconds=max(self._end - time.monotonic(), _POLL_S))

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Raise errors of torch.distributed as `PeerFailedError` that tell how far each member has come."""
        try:
            self._mark(what)
            yield
        except RuntimeError as error:
            if isinstance(error, WeightSyncError):
                raise
            overdue = time.monotonic() >= self._end - _ROUNDED_S
            limit = f"{self.place.timeout_s:g} s (cluster.call_timeout_s)"
            why = f"another member did not answer within {limit}" if overdue else "another member ended"
            raise PeerFailedError(
                f"{self.me} could not {what}: {why}. {self._progress()}. torch.distributed reports: {_short(error)}"
            ) from error

    def _mark(self, what: str) -> None:
        """Leave a note of what this process does, for the messages of others."""
        if self._control is not None:
            self._store.set(f"does-{self.place.rank}", what)

    def _progress(self) -> str:
        """Return what each member did last, as far as the store can be asked."""
        try:
            self._tcp.set_timeout(timedelta(seconds=_LOOK_S))
            notes = [
                f"{name} was to {self._store.get(key).decode() if self._store.check([key]) else 'join the group'}"
                for key, name in ((f"does-{rank}", name) for rank, name in enumerate(self.place.members))
            ]
        except (RuntimeError, AttributeError):  # the store is gone, or was never reached
            return f"The store of {self.place.members[0]} at {self.place.host}:{self.place.port} does not answer"
        finally:
            with suppress(RuntimeError, AttributeError):
                self._tcp.set_timeout(timedelta(seconds=self.place.timeout_s))
        return "Last, " + "; ".join(notes)

    @contextmanager
    def _leaving_after_a_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.leave()
            raise


def abandon(place: Place) -> None:
    """Make the members that wait for others to join this group give up; it has no effect on a complete group."""
    with suppress(RuntimeError):  # the store may be gone, and its members with it
        store = TCPStore(place.host, place.port, None, is_master=False, timeout=timedelta(seconds=_LOOK_S))
        PrefixStore(place.name, store).set(_ABANDONED, "yes")


def send(
    tensors: Iterable[Named], manifest: Manifest, *, group: PublishGroup | None, sum_: Callable[[Tensor], Tensor]
) -> dict[str, int]:
    """Send the tensors of ``manifest`` from the learner, and return the checksum of each; every rank must call it.

    ``group`` is rank 0's; the other ranks have none, take part in gathering ``tensors``, and return nothing. ``sum_``
    adds up a tensor over the ranks. It is called after each bucket: no rank runs ahead, and all of them fail together.
    Raises `WeightSyncError` if a tensor is not as the manifest lists it, `PeerFailedError` if an engine fails.
    """
    arriving, sums, buckets = iter(tensors), {}, manifest.buckets()
    try:
        if group is not None:
            group.start_clock()
        for bucket in buckets:
            failure: WeightSyncError | None = None
            buffer_N = torch.empty(
                bucket.bytes if group else 0, dtype=torch.uint8, device=group.device if group else "cpu"
            )
            problem = _fill(bucket, arriving, buffer_N if group else None, is_last=bucket is buckets[-1])
            if group is not None:
                try:
                    sums |= _checksums(bucket.views(buffer_N)) if problem is None else {}
                    group.send(bucket, buffer_N, version=manifest.version, problem=problem)
                except WeightSyncError as error:
                    failure = error
            has_failed = bool(sum_(torch.tensor([float(failure is not None)])))
            if failure is not None:
                raise failure
            if has_failed:
                raise PeerFailedError(f"the learner's rank 0 could not send {bucket}")
    except BaseException:
        if group is not None:
            group.leave()
        raise
    return sums


def _fill(bucket: Bucket, arriving: Iterator[Named], buffer_N: Tensor | None, *, is_last: bool) -> str | None:
    """Take the tensors of a bucket and copy them into ``buffer_N``; return what is wrong with them, or None.

    All of them are taken whatever is wrong, so that the ranks stay together.
    """
    places = [None] * len(bucket.tensors) if buffer_N is None else [view for _, view in bucket.views(buffer_N)]
    problem, count = None, 0
    for outline, place, (name, tensor) in zip(bucket.tensors, places, islice(arriving, len(places)), strict=False):
        count += 1
        found = (
            f"{name} ({str(tensor.dtype).removeprefix('torch.')}, {' x '.join(map(str, tensor.shape)) or 'one number'})"
        )
        if found != str(outline):
            problem = problem or f"the learner would send {found} where {outline} was announced"
        elif place is not None:
            place.copy_(tensor)
    if count < len(places):
        problem = problem or f"the learner did not produce {bucket.tensors[count]}, which was announced"
    if is_last and (extra := next(arriving, None)) is not None:
        problem = problem or f"the learner would send {extra[0]}, which was not announced"
    return problem


def arrive(group: PublishGroup, manifest: Manifest, load: Callable[[Sequence[Named]], frozenset[str]]) -> Arrival:
    """Receive a publish in this process and report on it. Errors are part of the report.

    ``load`` takes in one bucket and returns the parameters that this bucket did not reach.
    """
    unreached: list[frozenset[str]] = []
    try:
        sums = group.receive(manifest, lambda named: unreached.append(load(named)))
    except WeightSyncError as error:
        return Arrival(process=group.me, checksums={}, problem=error)
    left_out = frozenset.intersection(*unreached) if unreached else frozenset[str]()
    return Arrival(process=group.me, checksums=sums, unreached=tuple(sorted(left_out)))


def raise_first(problems: Sequence[WeightSyncError]) -> None:
    """Raise one of the errors, if there are any: a cause rather than a `PeerFailedError`, which is an effect."""
    for problem in sorted(problems, key=lambda problem: isinstance(problem, PeerFailedError)):
        raise problem


def damaged(sent: Mapping[str, int], arrivals: Sequence[Arrival]) -> tuple[str, ...]:
    """Return the tensors of which a process did not receive the bits that were sent, with the process's name."""
    return tuple(
        f"{name} at {arrival.process}"
        for arrival in arrivals
        for name, expected in sent.items()
        if arrival.checksums.get(name) != expected
    )


def _checksums(named: Iterable[Named]) -> dict[str, int]:
    sums = {name: checksum(bits_of(tensor)) for name, tensor in named}
    return dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True))


def _gloo(store: Any, place: Place, timeout: timedelta) -> Any:
    options = ProcessGroupGloo._Options()  # pyright: ignore[reportAttributeAccessIssue]
    named = os.environ.get("GLOO_SOCKET_IFNAME", "").partition(",")[0]
    interface = "lo" if place.host == _LOOPBACK else named
    # Torch itself reads the variable for the default group only.
    make = ProcessGroupGloo
    device = make.create_device(interface=interface) if interface else make.create_default_device()
    options._devices, options._timeout = [device], timeout
    return ProcessGroupGloo(store, place.rank, len(place.members), options)


def _nccl(store: Any, place: Place, timeout: timedelta) -> Any:
    from torch.distributed import ProcessGroupNCCL

    options = ProcessGroupNCCL.Options()
    options._timeout = timeout
    return ProcessGroupNCCL(PrefixStore("data", store), place.rank, len(place.members), options)


def _finish(device: torch.device) -> None:
    """Wait until the device has done all that it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:200]
