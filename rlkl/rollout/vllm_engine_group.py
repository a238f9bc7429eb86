"""vLLM and weights that arrive by group: one member for each process of the engine."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlkl.errors import WeightSyncError
from rlkl.rollout.engine import EngineSettings
from rlkl.rollout.vllm_engine_adapters import AdapterReceiver, refused, without_halves
from rlkl.rollout.vllm_engine_reload import WeightReloader
from rlkl.system.parent import end_with_parent
from rlkl.weights.buckets import Manifest
from rlkl.weights.group import Arrival, Place, PublishGroup, arrive, raise_first

if TYPE_CHECKING:
    from vllm import LLM

_ANSWER_S = 30.0
"""Seconds that a process has after its deadline to hand over its report."""


def parallel_arguments(settings: EngineSettings) -> dict[str, Any]:
    """Return vLLM's arguments for an engine of several processes; empty for one process."""
    if settings.tensor_parallel == 1:
        return {}
    # Within a placement group vLLM would choose Ray, which starts its processes elsewhere.
    return {"tensor_parallel_size": settings.tensor_parallel, "distributed_executor_backend": "mp"}


def set_parallel_environment(settings: EngineSettings) -> None:
    """Set the variables that the processes of a parallel engine inherit; they divide the CPU threads of this one."""
    if settings.tensor_parallel > 1:
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # this process has threads, so it cannot fork
        if threads := os.environ.get("OMP_NUM_THREADS"):
            os.environ["OMP_NUM_THREADS"] = str(max(int(threads) // settings.tensor_parallel, 1))


class GroupReceiver(WeightReloader, AdapterReceiver):
    """Methods for weights by group that vLLM mixes into its worker, once in each process of the engine.

    They return errors instead of raising them: from another process vLLM passes on only the text of an error.
    """

    rank: int
    device: torch.device
    _publish_group: PublishGroup | None = None

    def end_with_engine(self) -> None:
        """Let the kernel end this process at once if the process that started it ends.

        vLLM's own watch takes many seconds, in which GPU memory stays taken, and does nothing while a publish waits.
        """
        end_with_parent()

    def join_publish_group(self, place: Place) -> list[WeightSyncError]:
        """Join a group; ``place`` is that of the engine's first process. Return the error, if there is one."""
        self.leave_publish_group()
        try:
            self._publish_group = PublishGroup(replace(place, rank=place.rank + self.rank), device=self.device)
        except WeightSyncError as error:
            return [error]
        return []

    def leave_publish_group(self) -> None:
        """Leave the group, if this process is in one."""
        if self._publish_group is not None:
            self._publish_group.leave()
            self._publish_group = None

    def receive_from_publish_group(self, manifest: Manifest) -> Arrival:
        """Load a publish bucket by bucket, and report on it."""
        assert self._publish_group is not None
        try:
            with self.reloading() as load:
                return arrive(self._publish_group, manifest, load)
        except BaseException:
            self.leave_publish_group()  # so that the others need not wait for their deadline
            raise

    def receive_adapters_from_publish_group(
        self, manifest: Manifest, names: list[str], rank: int, alpha: float
    ) -> tuple[Arrival, list[str]]:
        """Replace the adapter; return the report, and the tensors that no module of vLLM holds (`receive_adapters`).

        ``names`` are all tensors of the adapter. Those that did not arrive are the unreached ones of the report.
        """
        assert self._publish_group is not None
        tensors: list[tuple[str, Tensor]] = []

        def keep(named: Sequence[tuple[str, Tensor]]) -> frozenset[str]:
            tensors.extend(named)
            return frozenset(names) - {name for name, _ in named}

        arrival = arrive(self._publish_group, manifest, keep)
        if arrival.problem is not None:
            return arrival, []
        return arrival, self.receive_adapters(without_halves(tensors), rank, alpha)


class GroupPublishing:
    """The part of `rlkl.rollout.vllm_engine.VllmEngine` that takes in weights by group. See `GroupEngine`."""

    _llm: LLM
    _settings: EngineSettings
    _adapters: list[str]
    _answer_s: float = _ANSWER_S

    @abstractmethod
    def forget(self) -> None: ...

    @property
    def processes(self) -> int:
        """Processes of this engine; each is a member of the group."""
        return self._settings.tensor_parallel

    def bind_processes(self) -> None:
        """Make the processes of a parallel engine end with this one, whatever ends it."""
        if self.processes > 1:
            self._ask("end_with_engine")

    def join_group(self, place: Place) -> None:
        """See `GroupEngine.join_group`."""
        self._answer_s = place.timeout_s + _ANSWER_S
        raise_first([error for errors in self._ask("join_publish_group", place) for error in errors])

    def receive_from_group(self, manifest: Manifest) -> list[Arrival]:
        """See `GroupEngine.receive_from_group`."""
        if adapter := self._settings.adapter:
            arguments = (self._adapters, adapter.rank, adapter.alpha)
            answers = self._ask("receive_adapters_from_publish_group", manifest, *arguments)
            arrivals = [arrival for arrival, _ in answers]
            for _, homeless in answers:
                if homeless:
                    raise refused(f"no module of it takes {len(homeless)} of them: {', '.join(homeless[:3])}")
        else:
            arrivals = self._ask("receive_from_publish_group", manifest)
        self.forget()
        raise_first([arrival.problem for arrival in arrivals if arrival.problem is not None])
        return arrivals

    def _ask(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of `GroupReceiver` in every process; raise `WeightSyncError` if one has ended or hangs."""
        try:
            return self._llm.collective_rpc(method, timeout=self._answer_s, args=arguments)
        except (RuntimeError, TimeoutError) as error:
            if self.processes == 1:
                raise
            raise WeightSyncError(
                f"one of the {self.processes} processes of this engine (rollout.tensor_parallel) ended, failed, or did "
                f"not answer within {self._answer_s:g} s: {error!r}"
            ) from error
