"""An engine whose completions come early, late and in any order: ``tests.integration.timed_engine:Timed``."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Sequence

import torch

from rlkl.rollout.engine import EngineSettings, Request
from rlkl.types import Completion, Probe

PAUSES_S = (0.0, 0.0, 0.0, 0.003, 0.02, 0.06)
"""The last one is longer than the 50 ms between two hand-overs."""


def answer(request: Request) -> Completion:
    """The completion of a request, which its prompt and seed decide."""
    draw = random.Random(request.seed)
    ids = tuple(draw.randrange(3, 60) for _ in range(draw.randint(1, 6)))
    return Completion(token_ids=ids, logprobs=(-1.0,) * len(ids), finish_reason="stop", weights_version=0)


def shuffled(requests: Sequence[Request], case: int) -> list[tuple[int, Completion]]:
    """All completions with their numbers, in an order of the case's own."""
    numbered = [(number, answer(request)) for number, request in enumerate(requests)]
    random.Random(case).shuffle(numbered)
    return numbered


class Timed:
    """Pauses as long as the first token of its first prompt, the number of the case, decides."""

    def __init__(self, settings: EngineSettings) -> None:
        pass

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        if not requests:
            return
        chance = random.Random(f"{requests[0].prompt_token_ids[0]} {requests[0].seed}")
        slow = chance.random() < 0.2  # this worker is slower than all others
        for numbered in shuffled(requests, chance.randrange(1000)):
            time.sleep(0.06 if slow else chance.choice(PAUSES_S))
            yield numbered
        time.sleep(chance.choice(PAUSES_S))  # the last hand-over may be one without completions

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return [answer(request) for request in requests]

    def score(self, probes: Sequence[Probe]) -> list[tuple[float, ...]]:
        return [(0.0,) * (len(probe.token_ids) - 1) for probe in probes]

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> frozenset[str]:
        return frozenset()

    def readable_weights(self) -> Iterable[tuple[str, torch.Tensor]]:
        return ()
