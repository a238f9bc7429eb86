"""The transformers engine: ``generate``, for models that vLLM lacks and for debugging. Slow, few moving parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria

from rlkl.batch import ImageInputs
from rlkl.data.vision import image_inputs, load_picture_processor
from rlkl.errors import WeightSyncError
from rlkl.models.adapter import adapter_parameters, add_adapter
from rlkl.models.language_model import LanguageModel
from rlkl.rollout.engine import EngineSettings, Request
from rlkl.rollout.joining import JoinsGroup
from rlkl.rollout.stopping import StopWatch, stop_watch
from rlkl.types import Completion, Image, Probe

_ROWS_PER_CALL = 64


class GumbelNoise(LogitsProcessor):
    """Turns greedy decoding into sampling: the arg-max of logits plus Gumbel noise is a draw from their softmax.

    Each row draws from its own generator, so that its tokens depend on its seed and on nothing else in the batch. The
    log-prob of each drawn token is kept and the logits are not: a step needs memory for its own logits alone. At
    temperature 0 there is no noise, and the log-probs are those at temperature 1.
    """

    def __init__(self, seeds: Sequence[int], temperature: float) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature = temperature
        self._logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noisy_BV = scores.double() if self._temperature == 0 else self._noisy(scores)
        drawn_B1 = noisy_BV.argmax(dim=-1, keepdim=True)
        logprobs_BV = (scores.float() / (self._temperature or 1.0)).log_softmax(-1)
        self._logprobs.append(logprobs_BV.gather(-1, drawn_B1)[:, 0])
        return noisy_BV

    def _noisy(self, scores: Tensor) -> Tensor:
        noise_BV = torch.empty(scores.shape, dtype=torch.float64)
        for row_V, generator in zip(noise_BV, self._generators, strict=True):
            torch.rand(len(row_V), generator=generator, dtype=torch.float64, out=row_V)
        noise_BV = noise_BV.clamp_min_(1e-300).log_().neg_().log_().to(scores.device)
        return noise_BV.neg_().add_(scores.double() / self._temperature)

    def logprobs(self) -> Tensor:
        """Return log-probs ``[B, T]`` of the drawn tokens, at the sampling temperature; of no use after a stop."""
        return torch.stack(self._logprobs, dim=1)


class StopTexts(StoppingCriteria):
    """Ends a row of ``generate`` when its completion holds a stop text, and remembers after how many tokens."""

    def __init__(self, watch: StopWatch, width: int, begun: Sequence[tuple[int, ...]]) -> None:
        """Prepare for rows whose first sampled token is in column ``width``. ``begun``: each row's tokens before it."""
        self._watch = watch
        self._width = width
        self._begun = begun
        self.lengths: dict[int, int] = {}
        """Sampled tokens of the completion by row."""

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        for row, sampled in enumerate(input_ids[:, self._width :].tolist()):
            tokens = [*self._begun[row], *sampled]
            if row not in self.lengths and (length := self._watch.end(tokens, len(tokens) - 1)) is not None:
                self.lengths[row] = length - len(self._begun[row])
        return torch.tensor([row in self.lengths for row in range(len(input_ids))], device=input_ids.device)


class HfEngine(JoinsGroup):
    """``transformers.generate`` inside this process, on the GPU where there is one."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype: torch.dtype = getattr(torch, settings.dtype)
        self._language_model = LanguageModel(settings.model_path, dtype=dtype, device=self._device).eval()
        self._model: Any = self._language_model.model
        self._parameters = dict(self._model.named_parameters())
        if settings.adapter is not None:
            # In place, and in float32: it changes nothing until it is loaded.
            add_adapter(self._model, settings.adapter, freeze_vision=settings.freeze_vision)
            self._parameters = dict(adapter_parameters(self._model))
        self._model.generation_config = GenerationConfig()  # its own may penalise or suppress tokens, unseen by us
        self._pictures = load_picture_processor(settings.model_path, settings.pixels)
        self._pad = settings.stop_token_ids[0]
        self._watch = stop_watch(settings.model_path, settings.stop)

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return [completion for _, completion in self.stream(requests)]

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """See `Engine.stream`; chunk by chunk, and a chunk has one temperature."""
        runs = [list(run) for _, run in groupby(requests, key=lambda request: request.temperature)]
        chunks = [run[start : start + _ROWS_PER_CALL] for run in runs for start in range(0, len(run), _ROWS_PER_CALL)]
        return enumerate(completion for chunk in chunks for completion in self._generate_chunk(chunk))

    @torch.no_grad()
    def _generate_chunk(self, requests: Sequence[Request]) -> Iterator[Completion]:
        width = max(len(request.prompt_token_ids) for request in requests)
        padding = [width - len(request.prompt_token_ids) for request in requests]
        ids_BT = torch.tensor(
            [[self._pad] * n + list(request.prompt_token_ids) for n, request in zip(padding, requests, strict=True)]
        )
        attention_BT = torch.tensor([[0] * n + [1] * (width - n) for n in padding])
        begun = [request.begun_ids for request in requests]
        texts = None if self._watch is None else StopTexts(self._watch, width, begun)
        limits = [self._limit(request) for request in requests]
        temperature = requests[0].temperature
        temperature = self._settings.temperature if temperature is None else temperature
        draws = GumbelNoise([request.seed for request in requests], temperature)
        sequences_BT = self._model.generate(
            ids_BT.to(self._device),
            attention_mask=attention_BT.to(self._device),
            **self._seen(ids_BT, [request.images for request in requests]),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=max(limits),
                eos_token_id=list(self._settings.stop_token_ids),
                pad_token_id=self._pad,
            ),
            logits_processor=[draws],
            stopping_criteria=[] if texts is None else [texts],
        )
        new_BT, logprobs_BT = sequences_BT[:, width:], draws.logprobs()
        for row, (tokens, logprobs) in enumerate(zip(new_BT.tolist(), logprobs_BT.tolist(), strict=True)):
            ends = [t + 1 for t, token in enumerate(tokens) if token in self._settings.stop_token_ids][:1]
            ends += [texts.lengths[row]] if texts is not None and row in texts.lengths else []
            ends = [end for end in ends if end <= limits[row]]
            length = min(ends, default=min(len(tokens), limits[row]))
            yield Completion(
                token_ids=tuple(tokens[:length]),
                logprobs=tuple(logprobs[:length]),
                finish_reason="stop" if ends else "length",
            )

    def _limit(self, request: Request) -> int:
        limit = self._settings.max_new_tokens
        return limit if request.max_new_tokens is None else min(request.max_new_tokens, limit)

    def _seen(self, ids_BT: Tensor, images: Sequence[Sequence[Image]]) -> dict[str, Tensor]:
        """Return the inputs of `generate` for pictures: one after the other, shared ones repeated."""
        inputs = self._image_inputs(images)
        if inputs is None:
            return {}
        order = [image for of_sequence in inputs.images_B for image in of_sequence]
        patches = inputs.patches_PD.split(inputs.grids_I3.prod(dim=1).tolist())
        return {
            "pixel_values": torch.cat([patches[image] for image in order]),
            "image_grid_thw": inputs.grids_I3[order],
            "mm_token_type_ids": (ids_BT == self._settings.image_token_id).int().to(self._device),
        }

    def _image_inputs(self, images: Sequence[Sequence[Image]]) -> ImageInputs | None:
        if self._pictures is None:
            return None
        inputs = image_inputs([[(i.key, self._pictures.patches(i)) for i in of_sequence] for of_sequence in images])
        return inputs.to(self._device) if inputs else None

    @torch.no_grad()
    def score(self, probes: Sequence[Probe]) -> list[tuple[float, ...]]:
        scores = []
        for probe in probes:
            ids_T = torch.tensor(probe.token_ids, device=self._device)
            hidden_TH = self._language_model.hidden(ids_T[None], self._image_inputs([probe.images]))[0, :-1]
            logits_TV = self._language_model.head(hidden_TH).float()
            scores.append(tuple(logits_TV.log_softmax(-1).gather(-1, ids_T[1:, None])[:, 0].tolist()))
        return scores

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]]) -> frozenset[str]:
        reached = set()
        with torch.no_grad():
            for name, tensor in tensors:
                held = self._parameters[name]
                if held.shape != tensor.shape:  # a copy would repeat a smaller tensor
                    raise WeightSyncError(f"{name} has shape {tuple(tensor.shape)}, and {tuple(held.shape)} here")
                held.copy_(tensor)
                reached.add(name)
        return frozenset(self._parameters) - reached

    def readable_weights(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._parameters.items():
            yield name, tensor.detach().cpu()
