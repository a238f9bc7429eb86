"""Plan kills: which process of which run, and at which moments of it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from rlkl.recipe import Recipe

TRIES = 4
"""Moments of a kill: the next one is taken if there was no such process at the one before."""
EARLIEST = 0.25
"""Share of the run's time before which nothing is killed: it has not trained yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One kill."""

    number: int
    case: str
    target: str
    shares: Sequence[float]
    """Moments, as shares of the time of the undisturbed run."""


def targets_of(recipe: Recipe) -> list[str]:
    """Return the kinds of processes that a run has."""
    found = ["driver", "learner"]
    if recipe.rollout.workers:
        found.append("rollout worker")
    if any(reward.mode == "process" for reward in recipe.rewards):
        found.append("reward worker")
    return [*found, "raylet", "whole tree"]


def plan_kills(kills: int, seed: int, possible: Mapping[str, Sequence[str]]) -> Iterator[Kill]:
    """Yield so many kills, every possible pair of case and target once before any comes again.

    ``possible``: the targets by case.
    """
    chance = random.Random(seed)
    for number, (case, target) in enumerate(islice(cycle(_pairs(possible)), kills), start=1):
        shares = [chance.uniform(EARLIEST, 1.0) for _ in range(TRIES)]
        yield Kill(number=number, case=case, target=target, shares=shares)


def only(targets: Sequence[str], possible: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the targets by case, without those that are not wanted.

    Raises `ValueError` if no case has one of the wanted targets.
    """
    absent = set(targets).difference(*possible.values())
    if absent:
        raise ValueError(f"no run of {', '.join(possible)} has this process: {', '.join(sorted(absent))}")
    return {case: [target for target in found if target in targets] for case, found in possible.items()}


def _pairs(possible: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    """Return all pairs of case and target, so that few pairs have every target and every case."""
    left = [(case, target) for case, targets in possible.items() for target in targets]
    of_case, of_target = Counter[str](), Counter[str]()
    ordered = []
    while left:
        case, target = min(left, key=lambda pair: (of_target[pair[1]], of_case[pair[0]]))
        left.remove((case, target))
        of_case[case] += 1
        of_target[target] += 1
        ordered.append((case, target))
    return ordered
