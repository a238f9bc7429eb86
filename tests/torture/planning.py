"""Plan kills: which process of which run, and at which moments of it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from rlkl.recipe import Recipe
from tests.torture.driver import CHECKPOINT, PUBLISH

KILLS_A_RUN = 4
"""Most kills of one run: what goes on after a kill must survive the next one too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One kill of a run. Its moment counts in finished steps, since seconds differ from start to start."""

    target: str
    steps: int
    """It falls once so many steps are recorded."""
    share: float
    """It falls this share of a step later."""
    phase: str | None = None
    """It falls when the driver is in this phase, instead of after a share of a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One run and its kills, in their order."""

    number: int
    case: str
    kills: Sequence[Kill]


def targets_of(recipe: Recipe) -> list[str]:
    """Return the kinds of processes that a run has."""
    found = ["driver", "learner" if recipe.learner.ranks == 1 else "one of two ranks"]
    if recipe.rollout.workers:
        found.append("rollout worker")
    if any(reward.mode == "process" for reward in recipe.rewards):
        found.append("reward worker")
    return [*found, "raylet", "whole tree"]


def plan_rounds(kills: int, seed: int, possible: Mapping[str, Sequence[str]], *, steps: int) -> list[Round]:
    """Return rounds that kill each target so many times, spread evenly over the cases that have it.

    ``possible``: the targets by case. ``steps``: those of a run. No two kills of a run wait for the same step.
    """
    chance = random.Random(seed)
    wanted: dict[str, list[str]] = {case: [] for case in possible}
    for target in dict.fromkeys(target for targets in possible.values() for target in targets):
        cases = [case for case, targets in possible.items() if target in targets]
        chance.shuffle(cases)
        for case in islice(cycle(cases), kills):
            wanted[case].append(target)
    rounds = []
    for case, targets in wanted.items():
        chance.shuffle(targets)
        while targets:
            batch, targets = targets[:KILLS_A_RUN], targets[KILLS_A_RUN:]
            moments = sorted(chance.sample(range(steps), len(batch)))
            planned = [_kill(target, moment, chance) for target, moment in zip(batch, moments, strict=True)]
            rounds.append((case, planned))
    chance.shuffle(rounds)
    return [Round(number=number, case=case, kills=kills) for number, (case, kills) in enumerate(rounds, start=1)]


def only(targets: Sequence[str], possible: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the targets by case, without those that are not wanted.

    Raises `ValueError` if no case has one of the wanted targets.
    """
    absent = set(targets).difference(*possible.values())
    if absent:
        raise ValueError(f"no run of {', '.join(possible)} has this process: {', '.join(sorted(absent))}")
    return {case: [target for target in found if target in targets] for case, found in possible.items()}


def _kill(target: str, steps: int, chance: random.Random) -> Kill:
    """Return a kill at a random moment after so many steps; one of two waits for a phase."""
    return Kill(
        target=target, steps=steps, share=chance.random(), phase=chance.choice((None, None, PUBLISH, CHECKPOINT))
    )
