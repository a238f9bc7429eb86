"""Engines that break on purpose, named in recipes as ``tests.integration.engines:Class``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors.torch import save_file

from rlkl.rollout.engine import EngineSettings, Request
from rlkl.rollout.hf_engine import HfEngine
from rlkl.rollout.vllm_engine import VllmEngine
from rlkl.types import Completion, Probe
from rlkl.weights.buckets import Bucket
from rlkl.weights.group import Place, PublishGroup

LOST = "model.layers.1.mlp.down_proj.weight"
STALE = "model.embed_tokens.weight"
PROJECTOR = "model.visual.merger.mlp.2.weight"
"""The last matrix between a Qwen2.5-VL's vision tower and its language model."""


class LosesOneTensor(VllmEngine):
    """A real vLLM that never hands one tensor on."""

    lost: ClassVar[str] = LOST

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> frozenset[str]:
        return super().load_weights((name, tensor) for name, tensor in tensors if name != self.lost)


class LosesTheProjector(LosesOneTensor):
    """The same with a tensor of the vision tower."""

    lost = PROJECTOR


class KeepsOneTensor(VllmEngine):
    """A real vLLM that takes in the first value of one tensor again and again, and says that all is well."""

    stale: ClassVar[str] = STALE

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings)
        self._first: torch.Tensor | None = None

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> frozenset[str]:
        received = dict(tensors)
        self._first = received[self.stale].clone() if self._first is None else self._first
        return super().load_weights((received | {self.stale: self._first}).items())


class KeepsTheProjector(KeepsOneTensor):
    """The same with a tensor of the vision tower."""

    stale = PROJECTOR


class TellsItsAdapters(VllmEngine):
    """A real vLLM that writes down its adapter, as it is in memory, after each publish: ``held/N.safetensors``."""

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings)
        self._folder = Path(settings.model_path) / "held"  # vLLM loads every file of the model's own folder
        self._folder.mkdir(exist_ok=True)
        self._publishes = 0

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> frozenset[str]:
        unreached = super().load_weights(tensors)
        held = {name: tensor.float().contiguous() for name, tensor in self.readable_weights()}
        save_file(held, self._folder / f"{self._publishes}.safetensors")
        self._publishes += 1
        return unreached


class LosesOneAdapter(LosesOneTensor):
    """A real vLLM that never hands on one matrix of an adapter."""

    lost = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"


def forget(worker: Any) -> int:
    """Fill the parameters of a vLLM's model with NaN, those at least that it keeps as plain tensors; count them."""
    held = [parameter for parameter in worker.model_runner.get_model().parameters() if parameter.numel() > 0]
    for parameter in held:
        parameter.data.fill_(float("nan"))
    return len(held)


class ForgetsAsleep(VllmEngine):
    """A real vLLM whose weights are lost when it sleeps, as on a GPU. It writes its calls to a file of the model."""

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings)
        self._calls = Path(settings.model_path) / "calls" / "calls"  # vLLM loads every file of the model's own folder
        self._calls.parent.mkdir(exist_ok=True)

    def sleep(self) -> None:
        super().sleep()
        assert min(self._llm.collective_rpc(forget)) > 0
        self._note("sleep")

    def wake(self, part: Literal["weights", "kv_cache"]) -> None:
        super().wake(part)
        self._note(f"wake {part}")

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> frozenset[str]:
        unreached = super().load_weights(tensors)
        self._note("load")
        return unreached

    def _note(self, call: str) -> None:
        with self._calls.open("a") as file:
            file.write(f"{call}\n")


class Dies(HfEngine):
    """Its process ends in the middle of the first generation."""

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        print("last words", file=sys.stderr, flush=True)
        os._exit(3)


class Hangs(HfEngine):
    """Never answers."""

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        time.sleep(3600)
        yield from ()


class StaysLoading(HfEngine):
    """Never ends its start. It leaves a file ``loading`` in the model's folder."""

    def __init__(self, settings: EngineSettings) -> None:
        (Path(settings.model_path) / "loading").touch()
        time.sleep(3600)


class Unlucky(HfEngine):
    """Ends or hangs once at each place that a file in the model's folder names; the file goes with it.

    ``generate`` ends it after its first completion, ``hang`` lets it hang there, and ``load`` ends it while it takes in
    weights. A file ``generate-3`` counts for the third version of the weights.
    """

    version = -1

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        finished = super().stream(requests)
        yield next(finished)
        if self._is_due("generate"):
            os._exit(3)
        if self._is_due("hang"):
            time.sleep(3600)
        yield from finished

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> frozenset[str]:
        self.version += 1
        if self._is_due("load"):
            os._exit(3)
        return super().load_weights(tensors)

    def _is_due(self, place: str) -> bool:
        due = Path(self._settings.model_path) / f"{place}-{self.version}"
        try:
            due.unlink()
        except FileNotFoundError:
            return False
        return True


class DiesInPublish(HfEngine):
    """Its process ends while it takes in the weights of the first step."""

    loads = 0

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> frozenset[str]:
        self.loads += 1
        if self.loads > 1:
            os._exit(3)
        return super().load_weights(tensors)


class NeverJoins(HfEngine):
    """Does not come to the group."""

    def join_group(self, place: Place) -> None:
        time.sleep(3600)


class KeepsOneMatrix(HfEngine):
    """Never changes one matrix, and says that all is well."""

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> frozenset[str]:
        kept = (name for name in self._parameters if name == LOST)
        return super().load_weights((name, tensor) for name, tensor in tensors if name != LOST) - set(kept)


class _Flips(PublishGroup):
    def _receive_bytes(self, bucket: Bucket, version: int) -> torch.Tensor:
        buffer_N = super()._receive_bytes(bucket, version)
        if version > 0:
            dict(bucket.views(buffer_N))[LOST].view(torch.int32)[3, 2] ^= 1
        return buffer_N


class FlipsOneBit(HfEngine):
    """Receives the last bit of one number wrong."""

    def join_group(self, place: Place) -> None:
        self._publish_group = _Flips(place)


class WithoutGroup:
    """An engine of a user's own, written for weights from host memory."""

    def __init__(self, settings: EngineSettings) -> None:
        self._engine = HfEngine(settings)

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        return self._engine.stream(requests)

    def score(self, probes: Sequence[Probe]) -> list[tuple[float, ...]]:
        return self._engine.score(probes)

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> frozenset[str]:
        return self._engine.load_weights(tensors)
