"""Cutting rows into parts that share no prompt."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from rlkl.errors import DataError
from rlkl.seeds import derive_seed


def split_by_prompt(
    prompts: Sequence[str], *, held_out_fraction: float, parts: int, seed: int
) -> tuple[list[int], list[list[int]]]:
    """Return the numbers of the held-out rows, and of each of ``parts`` equal training parts, by prompt.

    No prompt is in two of them.

    Prompts are dealt out in an order drawn from ``seed``: to the held-out rows until they are ``held_out_fraction`` of
    all, then always to the smallest part. Row numbers come out in order.

    >>> split_by_prompt(["a", "a", "b", "c"], held_out_fraction=0.25, parts=1, seed=0)
    ([3], [[0, 1, 2]])

    Raises:
        DataError: there are too few prompts for every part to get one.
    """
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, prompt in enumerate(prompts):
        rows_of[prompt].append(row)
    if len(rows_of) < parts + 1:
        raise DataError(
            f"data.source has {len(rows_of)} different prompts, but rows of one prompt stay together and "
            f"{parts + 1} parts (held-out rows and {parts} to train on) need one each; bring more prompts"
        )
    order = list(rows_of)
    random.Random(derive_seed(seed, "split")).shuffle(order)
    held_out: list[int] = []
    trained: list[list[int]] = [[] for _ in range(parts)]
    for dealt, prompt in enumerate(order):
        enough = len(held_out) >= held_out_fraction * len(prompts) or len(order) - dealt <= parts
        place = min(trained, key=len) if held_out and enough else held_out
        place += rows_of[prompt]
    return sorted(held_out), [sorted(part) for part in trained]
