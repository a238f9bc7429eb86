"""Rewards that ensembles are made of in tests, named as ``tests.unit.reward_models.members:name``."""

from __future__ import annotations

import asyncio
import random


def length(completion: str) -> float:
    return float(len(completion))


def digits(completion: str, answer: str, bonus: float = 0.0) -> float:
    return float(completion == answer) + bonus


def batch_length(completions: list[str]) -> list[float]:
    return [float(len(completion)) for completion in completions]


async def slowly(completion: str, wait_s: float = 0.0) -> float:
    await asyncio.sleep(wait_s)
    return 10.0 * len(completion)


def draws(completion: str, rng: random.Random) -> float:
    return rng.random()


def in_words(completion: str) -> str:
    return "5"


def abstains_on_x(completion: str) -> float | None:
    return None if completion == "x" else 1.0


def broken(completion: str) -> float:
    return float("nan")


def takes_all(completion: str, **columns: object) -> float:
    return 0.0


def takes_group(group: object) -> list[float]:
    return []


class Model:
    """Holds something between ``setup`` and ``close``."""

    def __init__(self, *, bias: float) -> None:
        self.bias = bias
        self.ready = False

    def setup(self) -> None:
        self.ready = True

    def close(self) -> None:
        self.ready = False

    def __call__(self, *, completion: str) -> float:
        assert self.ready, "scored before it was set up"
        return len(completion) + self.bias
