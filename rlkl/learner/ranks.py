"""The processes that share the learner's work. Every rank runs the same learner on the same host batch."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed
from torch._C._distributed_c10d import TCPStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from rlkl.errors import EnvironmentProblem

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendezvous:
    """The place that the ranks meet at: the store that rank 0 has opened (`open_store`)."""

    host: str
    port: int
    rank: int
    size: int
    timeout_s: float
    """Deadline of each wait for the other ranks."""


def open_store(host: str, *, size: int, timeout_s: float) -> Any:
    """Open the store that the ranks meet at, on a free port of this machine; its attribute ``port`` is the port.

    It listens at ``host`` only, where torch by itself would listen at every address: it asks nobody for a token.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.bind((host, 0))
    except OSError as error:
        listener.close()
        raise EnvironmentProblem(
            f"the learner's ranks cannot meet at {host}: no network interface of that machine has this address "
            f"({error}). Start Ray there with --node-ip-address set to an address that the machine has"
        ) from error
    port = listener.getsockname()[1]
    return TCPStore(
        host,
        port,
        size,
        is_master=True,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


def join_group(place: Rendezvous, device: torch.device, store: Any = None) -> None:
    """Make the default process group, which serves tensors in host memory and on ``device``.

    Waits until all ranks have joined; raises RuntimeError of torch.distributed at the deadline. ``store``: what
    `open_store` returned, on rank 0.
    """
    timeout = timedelta(seconds=place.timeout_s)
    if place.host == LOOPBACK:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if store is None:
        store = TCPStore(place.host, place.port, place.size, is_master=False, timeout=timeout)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=place.rank,
        world_size=place.size,
        timeout=timeout,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process's place among the ranks. One rank alone has no process group, and its sums are the numbers."""

    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None
    """All ranks in one dimension, for sharding; None for one rank alone."""

    @staticmethod
    def join(place: Rendezvous, device: torch.device, store: Any = None) -> Ranks:
        """Join the other ranks in the process group that serves tensors in host memory and on ``device``.

        ``store``: what `open_store` returned, on rank 0. Waits until all ranks have joined; raises RuntimeError of
        torch.distributed at the deadline.
        """
        join_group(place, device, store)
        mesh = init_device_mesh(device.type, (place.size,))
        return Ranks(rank=place.rank, size=place.size, mesh=mesh)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all ranks, in place, and return it. Every rank must call it."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def sum_named(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Add up numbers by name, in the order of the ranks; a rank may lack names that others have."""
        if self.size == 1:
            return dict(values)
        parts: list[Any] = [None] * self.size
        distributed.all_gather_object(parts, {name: value.detach().cpu() for name, value in values.items()})
        totals: dict[str, Tensor] = {}
        for part in parts:
            for name, value in part.items():
                totals[name] = totals[name] + value if name in totals else value
        return totals

    def barrier(self) -> None:
        """Wait until every rank has called this."""
        self.sum_(torch.zeros(1))

    def leave(self) -> None:
        """End the process group; the sharded models cannot be used afterwards."""
        if self.size > 1:
            distributed.destroy_process_group()
