"""The vLLM engine, on a GPU or on a plain CPU. Only this file and those whose names go on from its own import vllm."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch

from rlkl.data.images import open_image
from rlkl.errors import EnvironmentProblem, RolloutError
from rlkl.rollout.engine import EngineSettings, Request
from rlkl.rollout.stopping import stop_watch
from rlkl.rollout.vllm_engine_adapters import (
    adapter_arguments,
    adapter_request,
    names_of,
    refused,
    without_halves,
)
from rlkl.rollout.vllm_engine_group import GroupPublishing, GroupReceiver, parallel_arguments, set_parallel_environment
from rlkl.rollout.vllm_engine_requests import Ended, RunningRequests
from rlkl.types import Completion, Image, Probe

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from vllm import LLM, RequestOutput

_FIRST = -1
"""vLLM's priority of probes; completions have 0, and small numbers go first."""
_EXTENSION = "rlkl.rollout.vllm_engine.WeightReceiver"


class WeightReceiver(GroupReceiver):
    """Methods that vLLM mixes into its worker (``worker_extension_cls``), where the model lives."""

    def receive_weights(self, tensors: list[tuple[str, torch.Tensor]]) -> list[str]:
        """Load checkpoint-named tensors in place; returns the engine's parameters that none of them reached."""
        with self.reloading() as load:
            return sorted(load(tensors))

    def readable_weights(self) -> list[tuple[str, torch.Tensor]]:
        """Return the parameters that still exist as plain tensors: a CPU engine packs and frees its linear weights."""
        parameters = self.model_runner.get_model().named_parameters()
        return [(name, tensor.detach().cpu()) for name, tensor in parameters if tensor.numel() > 0]


class VllmEngine(GroupPublishing):
    """vLLM inside this process. One request a completion, each with its own seed; no tokenizer, no text."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._watch = stop_watch(settings.model_path, settings.stop)
        self._adapters = names_of(settings)
        self._request = adapter_request() if self._adapters else None
        _set_environment(settings)
        try:
            self._llm: LLM = _start(settings, adapter_arguments(settings, self._adapters) if self._adapters else {})
        except (AssertionError, NotImplementedError, ValueError) as error:
            raise EnvironmentProblem(
                f"vLLM cannot host the model at {settings.model_path!r} here ({str(error).rstrip('.')}). Set "
                "rollout.engine=hf, which samples with transformers, or choose another model"
            ) from error
        self._requests = RunningRequests(llm=self._llm)
        self._waiting: dict[int, tuple[tuple[int, ...], tuple[Image, ...]]] = {}
        """Prompts of the completions that `step` has not returned yet, by number."""
        self._sampled: list[Ended] = []
        self.bind_processes()

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        completions = dict(self.stream(requests))
        return [completions[number] for number in range(len(requests))]

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """See `Engine.stream`. The speed of the caller does not change how vLLM batches requests."""
        self.add(list(enumerate(requests)))
        while self.is_busy:
            yield from self.step()

    def add(self, requests: Sequence[tuple[int, Request]]) -> None:
        """See `SteppedEngine.add`."""
        from vllm import SamplingParams

        usual = self._settings.temperature
        opened = _opened(image for _, request in requests for image in request.images)
        limit = self._settings.max_new_tokens
        self._waiting |= {number: (request.prompt_token_ids, request.images) for number, request in requests}
        self._requests.add(
            [
                (
                    number,
                    self._input(request.prompt_token_ids, request.images, opened),
                    SamplingParams(
                        temperature=usual if request.temperature is None else request.temperature,
                        max_tokens=limit if request.max_new_tokens is None else min(request.max_new_tokens, limit),
                        seed=request.seed,
                        logprobs=0,
                        stop_token_ids=list(self._settings.stop_token_ids),
                        detokenize=False,
                    ),
                )
                for number, request in requests
            ],
            self._sampled,
            adapter=self._request,
            watch=self._watch,
            begun={number: request.begun_ids for number, request in requests if request.begun},
        )

    @property
    def is_busy(self) -> bool:
        """See `SteppedEngine.is_busy`."""
        return bool(self._waiting)

    def step(self) -> list[tuple[int, Completion]]:
        """See `SteppedEngine.step`."""
        if len(self._waiting) > len(self._sampled):
            self._requests.step()
        finished: list[tuple[int, Completion]] = []
        for ended in self._sampled:
            _check_prompt(ended.output, *self._waiting.pop(ended.number))
            finished.append((ended.number, _completion(ended)))
        self._sampled.clear()
        return finished

    def begin_version(self, version: int) -> None:
        """See `SteppedEngine.begin_version`."""
        self._requests.begin_version(version)

    def score(self, probes: Sequence[Probe]) -> list[tuple[float, ...]]:
        """See `Engine.score`. Completions that are being sampled go on meanwhile."""
        from vllm import SamplingParams

        parameters = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        opened = _opened(image for probe in probes for image in probe.images)
        scored: list[Ended] = []
        self._requests.add(
            [
                (number, self._input(probe.token_ids, probe.images, opened), parameters)
                for number, probe in enumerate(probes)
            ],
            scored,
            adapter=self._request,
            priority=_FIRST if self._settings.streams else None,
        )
        while len(scored) < len(probes):
            self._requests.step()
        outputs = {ended.number: ended.output for ended in scored}
        for number, probe in enumerate(probes):
            _check_prompt(outputs[number], probe.token_ids, probe.images)
        return [
            tuple(
                _chosen(position, token)
                for position, token in zip(_positions(outputs[number]), probe.token_ids[1:], strict=True)
            )
            for number, probe in enumerate(probes)
        ]

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> frozenset[str]:
        received = list(tensors)
        if settings := self._settings.adapter:
            missing = set(self._adapters) - {name for name, _ in received}
            whole = without_halves(received)  # vLLM takes no adapter of which one matrix is missing
            arguments = (whole, settings.rank, settings.alpha)
            for homeless in self._llm.collective_rpc("receive_adapters", args=arguments):
                if homeless:
                    raise refused(f"no module of it takes {len(homeless)} of them: {', '.join(homeless[:3])}")
            stale = [sorted(missing)]
        else:
            stale = self._llm.collective_rpc("receive_weights", args=(received,))
        self.forget()
        return frozenset(name for names in stale for name in names)

    def sleep(self) -> None:
        """Free the GPU memory of weights and cache without a copy. On a CPU vLLM cannot, and nothing happens."""
        if torch.cuda.is_available():
            self._llm.sleep(level=2)

    def wake(self, part: Literal["weights", "kv_cache"]) -> None:
        """See `SleepingEngine.wake`. vLLM goes on with its requests once both parts are back."""
        if torch.cuda.is_available():
            self._llm.wake_up(tags=[part])

    def readable_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        if settings := self._settings.adapter:
            args = (self._adapters, settings.rank, settings.alpha)
            yield from self._llm.collective_rpc("readable_adapters", args=args)[0]
        else:
            yield from self._llm.collective_rpc("readable_weights")[0]

    def forget(self) -> None:
        """Drop all caches that earlier weights and requests have filled; running completions read their tokens again.

        Raises `RolloutError` if vLLM keeps one.
        """
        if not self._llm.reset_prefix_cache(reset_running_requests=True):
            raise RolloutError(
                "vLLM kept its prefix cache after it was told to drop it, so that later prompts would be read with "
                "old weights. A KV connector in rollout.vllm may hold the cache; leave it out"
            )
        self._llm.llm_engine.reset_encoder_cache()  # what the old weights saw of each picture

    def _input(
        self, token_ids: tuple[int, ...], images: tuple[Image, ...], opened: Mapping[str, Picture]
    ) -> dict[str, Any]:
        """Build a request with one placeholder a picture: vLLM repeats it. The key lets vLLM process a picture once.

        ``opened``: the pictures of all prompts by key, decoded once.
        """
        if not images:
            return {"prompt_token_ids": list(token_ids)}
        assert self._settings.image_token_id is not None
        return {
            "prompt_token_ids": _one_placeholder_each(token_ids, self._settings.image_token_id, len(images)),
            "multi_modal_data": {"image": [opened[image.key] for image in images]},
            "multi_modal_uuids": {"image": [image.key for image in images]},
        }


def _start(settings: EngineSettings, more: Mapping[str, Any]) -> LLM:
    """Load the model into a vLLM inside this process; ``more`` are arguments for adapters."""
    from vllm import LLM

    on_cpu = not torch.cuda.is_available()
    is_multimodal = settings.image_token_id is not None
    own: dict[str, Any] = {
        "model": settings.model_path,
        "dtype": settings.dtype,
        "skip_tokenizer_init": not is_multimodal,  # its picture processing asks for the tokenizer
        "limit_mm_per_prompt": {"image": settings.images_per_prompt, "video": 0} if is_multimodal else None,
        "mm_processor_kwargs": _pixels(settings) if is_multimodal else None,
        "generation_config": "vllm",
        "max_model_len": settings.max_prompt_tokens + settings.max_new_tokens,
        "logprobs_mode": "processed_logprobs",
        "gpu_memory_utilization": settings.memory_fraction,
        "enforce_eager": on_cpu,
        "enable_sleep_mode": settings.sleeps and not on_cpu,
        # A prompt that is taken in by parts draws once too often, and vLLM cannot set a CPU's generator back.
        "enable_chunked_prefill": False if on_cpu else None,
        "disable_chunked_mm_input": on_cpu,
        "worker_extension_cls": _EXTENSION,
        "scheduling_policy": "priority" if settings.streams else "fcfs",
        "disable_log_stats": True,
        **parallel_arguments(settings),
    }
    return LLM(**{**own, **more, **settings.vllm})


def _opened(images: Iterable[Image]) -> dict[str, Picture]:
    """Decode each picture once."""
    return {image.key: open_image(image) for image in {image.key: image for image in images}.values()}


def _check_prompt(output: RequestOutput, token_ids: tuple[int, ...], images: tuple[Image, ...]) -> None:
    if images and tuple(output.prompt_token_ids or ()) != token_ids:
        raise RolloutError(
            f"vLLM made {len(output.prompt_token_ids or ())} tokens of a prompt that has {len(token_ids)} with "
            f"its {len(images)} pictures: its picture processor is set otherwise than the model folder's"
        )


def _one_placeholder_each(token_ids: tuple[int, ...], placeholder: int, images: int) -> list[int]:
    """Shorten the first ``images`` runs of the placeholder to one token each; later runs are ordinary tokens."""
    kept: list[int] = []
    runs = 0
    for before, token in pairwise((-1, *token_ids)):
        starts = token == placeholder and before != placeholder
        runs += starts
        if token != placeholder or starts or runs > images:
            kept.append(token)
    return kept


def _pixels(settings: EngineSettings) -> dict[str, Any]:
    named = zip(("min_pixels", "max_pixels"), settings.pixels, strict=True)
    return {name: value for name, value in named if value is not None}


def _set_environment(settings: EngineSettings) -> None:
    """Set the variables that vLLM reads when it is imported. A value that the user has set stays."""
    for name, value in {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
    }.items():
        os.environ.setdefault(name, value)
    set_parallel_environment(settings)


def _completion(ended: Ended) -> Completion:
    """Return the completion of a finished request, up to its stop text if one has ended it."""
    output, end = ended.output, ended.end
    sample = output.outputs[0]
    reason = sample.finish_reason if end is None else "stop"
    if sample.logprobs is None or reason not in ("stop", "length"):
        raise RolloutError(
            f"vLLM ended request {output.request_id} with finish_reason={reason!r}; expected a "
            "completion that stopped by itself or reached max_new_tokens. Its prompt has "
            f"{len(output.prompt_token_ids or ())} tokens."
        )
    token_ids = tuple(sample.token_ids)[:end]
    return Completion(
        token_ids=token_ids,
        logprobs=tuple(
            _chosen(position, token) for position, token in zip(list(sample.logprobs)[:end], token_ids, strict=True)
        ),
        finish_reason=reason,
        weights_version=ended.versions[0][0],
        versions=ended.versions if len(ended.versions) > 1 else (),
    )


def _positions(output: RequestOutput) -> list[Any]:
    if output.prompt_logprobs is None:
        raise RolloutError(f"vLLM returned no prompt log-probs for request {output.request_id}")
    return list(output.prompt_logprobs)[1:]


def _chosen(position: Any, token: int) -> float:
    return float(position[token].logprob)
