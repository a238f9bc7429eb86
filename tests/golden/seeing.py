"""To record a rule that needs pictures: a tiny model that sees, an engine for it, prompts with a picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import numpy as np
import torch
from PIL import Image as pil
from torch import Tensor

from rlkl.data.images import encode_image
from rlkl.data.vision import image_inputs, load_picture_processor
from rlkl.models.language_model import LanguageModel
from rlkl.rollout.engine import EngineSettings, Request
from rlkl.rollout.hf_engine import GumbelNoise
from rlkl.tasks.characters import character_tokenizer
from rlkl.types import Completion, Prompt

SIDE = 56
"""Pixels: the smallest picture that the model's processor leaves as it is."""


class SeeingEngine:
    """Samples token by token and computes the whole sequence anew each time. `HfEngine` reads text alone."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._model = LanguageModel(settings.model_path, dtype=torch.float32, device=torch.device("cpu"))
        pictures = load_picture_processor(settings.model_path)
        assert pictures is not None
        self._pictures = pictures

    def prompt(self, step: int, number: int) -> Prompt:
        """A sum to which a picture of noise belongs, but for every fourth, which is text alone."""
        text = f"{step % 10}+{number}="
        token_ids = tuple(character_tokenizer().encode(text))
        if number % 4 == 0:
            return Prompt(id=text, text=text, token_ids=token_ids)
        pixels = np.random.default_rng([step, number]).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        image = encode_image(pil.fromarray(pixels))
        places = (self._pictures.image_token_id,) * self._pictures.token_count(image)
        return Prompt(id=text, text=text, token_ids=places + token_ids, images=(image,))

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        of_prompts = (list(found) for _, found in groupby(requests, key=lambda request: request.prompt_token_ids))
        return [completion for found in of_prompts for completion in self._completions(found)]

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        return iter(enumerate(self.generate(requests)))

    @torch.no_grad()
    def _completions(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """All samples of one prompt."""
        images = image_inputs([[(i.key, self._pictures.patches(i)) for i in request.images] for request in requests])
        noise = GumbelNoise([request.seed for request in requests], self._settings.temperature)
        ids_BT = torch.tensor([request.prompt_token_ids for request in requests])
        logprobs = []
        for _ in range(self._settings.max_new_tokens):
            logits_BV = self._model.head(self._model.hidden(ids_BT, images)[:, -1]) / self._settings.temperature
            next_B1 = noise(ids_BT, logits_BV).argmax(dim=-1, keepdim=True)
            logprobs.append(logits_BV.log_softmax(-1).gather(-1, next_B1))
            ids_BT = torch.cat([ids_BT, next_B1], dim=1)
        new_BT = ids_BT[:, len(requests[0].prompt_token_ids) :]
        for tokens, values in zip(new_BT.tolist(), torch.cat(logprobs, dim=1).tolist(), strict=True):
            (stop,) = self._settings.stop_token_ids
            length = tokens.index(stop) + 1 if stop in tokens else len(tokens)
            yield Completion(
                token_ids=tuple(tokens[:length]),
                logprobs=tuple(values[:length]),
                finish_reason="stop" if stop in tokens else "length",
            )

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]]) -> frozenset[str]:
        own = dict(self._model.model.named_parameters())
        with torch.no_grad():
            reached = {name: own[name].copy_(tensor) for name, tensor in tensors}
        return frozenset(own) - frozenset(reached)
