"""The actor that `rlkl doctor --cluster` starts on each node: it looks around and measures the way to the others."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from rlkl.errors import EnvironmentProblem
from rlkl.learner.ranks import Rendezvous, join_group, open_store
from rlkl.learner.sharing import Sighting, Token
from rlkl.system.node import NodeReport, this_node

_REPEATS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of one collective call with one tensor, on one process; the fastest of a few."""

    all_reduce_s: float
    broadcast_s: float


class NodeProbe:
    """Runs on one node and answers `rlkl.actors.cluster_probe`."""

    def __init__(self) -> None:
        self._store: Any = None

    def report(self) -> NodeReport:
        """Describe this node."""
        return this_node()

    def clock(self) -> float:
        """Return the time of this node's clock."""
        return time.time()

    def look(self, token: Token) -> Sighting:
        """Read a token in the run folder and answer it."""
        return token.look()

    def open_store(self, host: str, size: int, timeout_s: float) -> int:
        """Open the store that the processes meet at; return its port."""
        self._store = open_store(host, size=size, timeout_s=timeout_s)
        return self._store.port

    def reach(self, host: str, port: int, timeout_s: float) -> None:
        """Connect to a port of another node; raise `EnvironmentProblem` if nothing answers."""
        try:
            socket.create_connection((host, port), timeout=timeout_s).close()
        except OSError as error:
            raise EnvironmentProblem(f"it cannot connect to {host}:{port} ({error})") from error

    def join(self, place: Rendezvous, gpu: int | None) -> None:
        """Join the process group of all probes. ``gpu``: number of this node's GPU to use; None: the CPU only."""
        device = torch.device("cpu") if gpu is None else torch.device("cuda", gpu)
        if gpu is not None:
            torch.cuda.set_device(device)
        join_group(place, device, self._store)

    def measure(self, mib: int, gpu: int | None) -> Timing:
        """Time an all-reduce and a broadcast of a float32 tensor between all probes."""
        tensor = torch.ones(mib * 2**18, device="cpu" if gpu is None else f"cuda:{gpu}")
        distributed.all_reduce(tensor)  # the first call also connects
        size = distributed.get_world_size()
        if not torch.equal(tensor, torch.full_like(tensor, size)):
            raise EnvironmentProblem(f"an all-reduce of ones between {size} processes is not {size} everywhere")
        return Timing(
            all_reduce_s=_fastest(tensor, distributed.all_reduce),
            broadcast_s=_fastest(tensor, lambda one: distributed.broadcast(one, src=0)),
        )

    def leave(self) -> None:
        """End the process group."""
        distributed.destroy_process_group()


def _fastest(tensor: Tensor, collective: Callable[[Tensor], Any]) -> float:
    """Return the seconds of the fastest of a few calls, each started by all processes together."""
    seconds = []
    for _ in range(_REPEATS):
        tensor.fill_(1.0)
        distributed.all_reduce(torch.zeros(1, device=tensor.device))
        _finish(tensor)
        start = time.perf_counter()
        collective(tensor)
        _finish(tensor)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _finish(tensor: Tensor) -> None:
    """Wait for the work on a tensor's GPU."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
