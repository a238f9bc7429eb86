"""What a rollout engine is: token ids in, token ids and their log-probabilities out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from rlkl.types import Completion


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """All that an engine needs to start. ``model_path`` is a local folder or a Hugging Face name."""

    model_path: str
    dtype: str
    max_prompt_tokens: int
    max_new_tokens: int
    temperature: float
    stop_token_ids: tuple[int, ...]
    memory_fraction: float
    kv_cache_gib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One completion to sample. The seed alone decides the draw, whatever else is in the batch."""

    prompt_token_ids: tuple[int, ...]
    seed: int


class Engine(Protocol):
    """An engine hosts one copy of the policy. Constructed as ``Engine(settings)``; used by one thread."""

    def __init__(self, settings: EngineSettings) -> None: ...

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """One completion a request, in order, without text. Log-probs: sampling temperature, full vocabulary, nats."""
        ...

    def score(self, sequences: Sequence[tuple[int, ...]]) -> list[tuple[float, ...]]:
        """Log-probabilities at temperature 1 of each token after the first, given those before it."""
        ...

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> frozenset[str]:
        """Take in new weights by their checkpoint names; returns the names that were not used."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...
