"""Engines that break on purpose, named in recipes as ``tests.integration.engines:Class``."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence

import torch

from rlkl.rollout.engine import EngineSettings, Request
from rlkl.rollout.hf_engine import HfEngine
from rlkl.rollout.vllm_engine import VllmEngine
from rlkl.types import Completion

LOST = "model.layers.1.mlp.down_proj.weight"
STALE = "model.embed_tokens.weight"


class LosesOneTensor(VllmEngine):
    """A real vLLM that never hands one tensor on."""

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> frozenset[str]:
        return super().load_weights((name, tensor) for name, tensor in tensors if name != LOST)


class KeepsOneTensor(VllmEngine):
    """A real vLLM that takes in the first value of one tensor again and again, and says that all is well."""

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings)
        self._first: torch.Tensor | None = None

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> frozenset[str]:
        received = dict(tensors)
        self._first = received[STALE].clone() if self._first is None else self._first
        return super().load_weights((received | {STALE: self._first}).items())


class Dies(HfEngine):
    """Its process ends in the middle of the first generation."""

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        os._exit(3)


class Hangs(HfEngine):
    """Never answers."""

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        time.sleep(3600)
        yield from ()
