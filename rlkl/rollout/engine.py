"""The interface of rollout engines: token ids in, token ids and their log-probabilities out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from rlkl.errors import RecipeError
from rlkl.recipe import LoraSection
from rlkl.types import Completion, Image, Probe
from rlkl.weights.buckets import Manifest
from rlkl.weights.group import Arrival, Place


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """All that an engine needs to start. ``model_path`` is a local folder or a Hugging Face name."""

    model_path: str
    dtype: str
    max_prompt_tokens: int
    max_new_tokens: int
    temperature: float
    stop_token_ids: tuple[int, ...]
    """A completion ends with the first of these; it keeps the token."""
    memory_fraction: float
    kv_cache_gib: int
    stop: tuple[str, ...] = ()
    """A completion ends with the token that completes one of these texts (`rlkl.rollout.stopping`); it keeps its
    tokens."""
    tensor_parallel: int = 1
    """Processes that share the model."""
    vllm: Mapping[str, Any] = field(default_factory=dict)
    """Further engine arguments of vLLM, by name."""
    streams: bool = False
    """Whether completions are sampled all the time (``rollout.schedule: stream``): probes go before those that wait."""
    images_per_prompt: int = 0
    """The most pictures that a prompt has; 0 leaves the vision tower idle."""
    pixels: tuple[int | None, int | None] = (None, None)
    """Smallest and largest number of pixels of a picture; None: by the model's own settings."""
    adapter: LoraSection | None = None
    """If set, the engine adds such adapters to its model, and `Engine.load_weights` gets only their tensors."""
    freeze_vision: bool = False
    """Whether adapters leave out the vision tower."""
    image_token_id: int | None = None
    """The placeholder id, once for each token of a picture; None for a text model."""
    sleeps: bool = False
    """Whether the engine frees its memory while the learner uses its GPU (`SleepingEngine`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One completion to sample. The seed alone decides the draw, whatever else is in the batch."""

    prompt_token_ids: tuple[int, ...]
    seed: int
    images: tuple[Image, ...] = ()
    """The pictures of the placeholders in ``prompt_token_ids``, in order."""
    temperature: float | None = None
    """None: that of the settings. 0: the most probable token each time; log-probs are then at temperature 1."""
    begun: int = 0
    """The last so many of ``prompt_token_ids`` begin the completion, which the engine continues: it returns what comes
    after them, and a stop text may begin in them."""
    max_new_tokens: int | None = None
    """The most tokens to sample; None: that of the settings, which is never exceeded."""

    @property
    def begun_ids(self) -> tuple[int, ...]:
        """The tokens of the completion that are there already."""
        return self.prompt_token_ids[len(self.prompt_token_ids) - self.begun :]


class Engine(Protocol):
    """Hosts one copy of the policy. It is constructed as ``Engine(settings)`` and used by one thread."""

    def __init__(self, settings: EngineSettings) -> None: ...

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Return one completion a request, in order, without text.

        Log-probs are in nats, at the sampling temperature, over the full vocabulary.
        """
        ...

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """Yield the completions as they finish, each with its request's number, so that scoring can begin early."""
        ...

    def score(self, probes: Sequence[Probe]) -> list[tuple[float, ...]]:
        """Return the log-probabilities at temperature 1 of each token after the first, given those before it."""
        ...

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> frozenset[str]:
        """Load new weights by their checkpoint names; return the engine's parameters that none of them reached.

        With `EngineSettings.adapter` these are adapters, by their names in a peft file.
        """
        ...

    def readable_weights(self) -> Iterable[tuple[str, torch.Tensor]]:
        """Return the parameters that can be read back, to find the wrong one after a failed proof."""
        ...


@runtime_checkable
class ForgettingEngine(Protocol):
    """An engine that keeps what it has computed for earlier prompts, such as a prefix cache."""

    def forget(self) -> None:
        """Drop it, so that later completions do not depend on earlier requests by a bit."""
        ...


@runtime_checkable
class SteppedEngine(Engine, Protocol):
    """An engine that takes in requests, scores probes and loads weights between two of its steps.

    An engine without these methods finishes the completions that it has begun before it does anything else.
    """

    def add(self, requests: Sequence[tuple[int, Request]]) -> None:
        """Begin to sample one completion a request; the numbers come back with the completions."""
        ...

    def step(self) -> list[tuple[int, Completion]]:
        """Sample about one token of each completion; return those that have finished, with their numbers.

        Completions carry their ``weights_version``, and ``versions`` if weights were loaded while they were sampled.
        """
        ...

    @property
    def is_busy(self) -> bool:
        """Whether a completion has not been returned by `step` yet."""
        ...

    def begin_version(self, version: int) -> None:
        """Count tokens from here on as sampled by ``version``, which is loaded next; end a step that has begun."""
        ...


@runtime_checkable
class SleepingEngine(Engine, Protocol):
    """An engine that can free its memory and allocate it again. `rlkl.rollout.sleeping` has the order of the calls."""

    def sleep(self) -> None:
        """Free the memory of weights and key-value cache; their content is lost. No request is unfinished."""
        ...

    def wake(self, part: Literal["weights", "kv_cache"]) -> None:
        """Allocate the memory of one part again; its content is undefined."""
        ...


@runtime_checkable
class GroupEngine(Protocol):
    """The methods that an engine needs for ``weights.transport: group``, beside those of `Engine`.

    An engine whose model is in the worker's own process gets them from `rlkl.rollout.joining.JoinsGroup`.
    """

    @property
    def processes(self) -> int:
        """Processes of this engine; each is a member of the group."""
        ...

    def join_group(self, place: Place) -> None:
        """Join a group with all processes, and leave an earlier one. ``place`` is that of the first process.

        Raises `WeightSyncError`.
        """
        ...

    def receive_from_group(self, manifest: Manifest) -> list[Arrival]:
        """Receive a publish and load it; return a report for each process. Raises `WeightSyncError`."""
        ...


ENGINES = {
    "vllm": "rlkl.rollout.vllm_engine:VllmEngine",
    "hf": "rlkl.rollout.hf_engine:HfEngine",
}
"""``rollout.engine`` in the recipe -> where its class lives."""


def engine_class(name: str) -> type[Engine]:
    """Return the class that ``rollout.engine`` names: a name of `ENGINES`, or ``package.module:Class``.

    Raises `RecipeError` if there is no such engine, or if it has no `Engine.stream`.
    """
    module, colon, attribute = ENGINES.get(name, name).partition(":")
    if not colon:
        raise RecipeError(
            f"rollout.engine = {name!r} is unknown; expected one of {', '.join(ENGINES)}, or package.module:Class"
        )
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"rollout.engine = {name!r} cannot be imported: {error}") from error
    if not hasattr(found, "stream"):
        raise RecipeError(
            f"rollout.engine = {name!r} has no method stream; add it: it yields (number, completion) as completions "
            "finish (rlkl.rollout.engine.Engine), for example enumerate(self.generate(requests))"
        )
    return found
