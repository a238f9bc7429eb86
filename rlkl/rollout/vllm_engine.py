"""The vLLM engine, on a GPU or on a plain CPU. Only this file and those whose names go on from its own import vllm."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from rlkl.data.images import open_image
from rlkl.errors import EnvironmentProblem, RolloutError
from rlkl.rollout.engine import EngineSettings, Request
from rlkl.rollout.stopping import StopWatch, stop_watch
from rlkl.rollout.vllm_engine_adapters import (
    adapter_arguments,
    adapter_request,
    names_of,
    refused,
    without_halves,
)
from rlkl.rollout.vllm_engine_group import GroupPublishing, GroupReceiver, parallel_arguments, set_parallel_environment
from rlkl.types import Completion, Image, Probe

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from vllm import LLM, RequestOutput

_SeenPrompt = tuple[tuple[int, ...], tuple[Image, ...]]
"""Token ids, and the pictures of their placeholders."""

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
        self.bind_processes()

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        completions = dict(self.stream(requests))
        return [completions[number] for number in range(len(requests))]

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """See `Engine.stream`. The speed of the caller does not change how vLLM batches requests."""
        from vllm import SamplingParams

        parameters = [
            SamplingParams(
                temperature=self._settings.temperature,
                max_tokens=self._settings.max_new_tokens,
                seed=request.seed,
                logprobs=0,
                stop_token_ids=list(self._settings.stop_token_ids),
                detokenize=False,
            )
            for request in requests
        ]
        prompts = [(request.prompt_token_ids, request.images) for request in requests]
        return (
            (number, _completion(output, end))
            for number, output, end in self._run(prompts, parameters, watch=self._watch)
        )

    def score(self, probes: Sequence[Probe]) -> list[tuple[float, ...]]:
        from vllm import SamplingParams

        parameters = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        prompts = [(probe.token_ids, probe.images) for probe in probes]
        outputs = {number: output for number, output, _ in self._run(prompts, [parameters] * len(probes))}
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
        self._forget_computed()
        return frozenset(name for names in stale for name in names)

    def _forget_computed(self) -> None:
        """Drop what the old weights computed and later requests could use."""
        self._llm.reset_prefix_cache()
        self._llm.llm_engine.reset_encoder_cache()  # what the old weights saw of each picture

    def readable_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        if settings := self._settings.adapter:
            args = (self._adapters, settings.rank, settings.alpha)
            yield from self._llm.collective_rpc("readable_adapters", args=args)[0]
        else:
            yield from self._llm.collective_rpc("readable_weights")[0]

    def _run(
        self, prompts: Sequence[_SeenPrompt], parameters: Sequence[Any], watch: StopWatch | None = None
    ) -> Iterator[tuple[int, RequestOutput, int | None]]:
        """Do what vLLM's own ``generate`` does, and yield each output with its prompt's number once it is finished.

        ``watch`` ends a completion early, and the third value is then its number of tokens.
        """
        opened = {image.key: open_image(image) for image in {i.key: i for _, seen in prompts for i in seen}.values()}
        inputs: list[Any] = [self._input(token_ids, images, opened) for token_ids, images in prompts]
        identifiers = self._llm.enqueue(inputs, list(parameters), lora_request=self._request, use_tqdm=False)
        # An output bears the part before the dash; the rest is vLLM's own.
        number_of = {identifier.partition("-")[0]: number for number, identifier in enumerate(identifiers)}
        engine: Any = self._llm.llm_engine
        if watch is not None:
            _report_every_token(engine, identifiers)
        watched = [0] * len(prompts)
        while engine.has_unfinished_requests():
            for output in engine.step():
                number = number_of[output.request_id]
                end = None
                if watch is not None:
                    end = watch.end(output.outputs[0].token_ids, watched[number])
                    watched[number] = len(output.outputs[0].token_ids)
                if end is not None and not output.finished:
                    engine.abort_request([output.request_id])
                if end is not None or output.finished:
                    _check_prompt(output, *prompts[number])
                    yield number, output, end

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
        # A prompt that is taken in by parts draws once too often, and vLLM cannot set a CPU's generator back.
        "enable_chunked_prefill": False if on_cpu else None,
        "disable_chunked_mm_input": on_cpu,
        "worker_extension_cls": _EXTENSION,
        "disable_log_stats": True,
        **parallel_arguments(settings),
    }
    return LLM(**{**own, **more, **settings.vllm})


def _report_every_token(engine: Any, identifiers: Sequence[str]) -> None:
    """Make vLLM report these requests after each token; ``enqueue`` asks for finished ones only."""
    from vllm.sampling_params import RequestOutputKind

    for identifier in identifiers:
        engine.output_processor.request_states[identifier].output_kind = RequestOutputKind.CUMULATIVE


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


def _completion(output: RequestOutput, end: int | None) -> Completion:
    """Return the completion of a finished request, or its first ``end`` tokens if a stop text has ended it."""
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
    )


def _positions(output: RequestOutput) -> list[Any]:
    if output.prompt_logprobs is None:
        raise RolloutError(f"vLLM returned no prompt log-probs for request {output.request_id}")
    return list(output.prompt_logprobs)[1:]


def _chosen(position: Any, token: int) -> float:
    return float(position[token].logprob)
