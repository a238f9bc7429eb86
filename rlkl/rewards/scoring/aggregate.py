"""From the outcomes of all rewards to one number a sample: failures by policy, normalisation, the weighted sum.

Samples are numbered through a round, group by group. Statistics are taken over the samples that are left once failures
have dropped theirs. An abstaining reward adds nothing to the sum; a sample on which all rewards abstain has no reward.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev

from rlkl.recipe import Normalize, RewardSection
from rlkl.rewards.function.result import Outcome, Score

STD_EPSILON = 1e-4
"""Added to a standard deviation before dividing by it, so that rounding noise is not blown up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardOutcomes:
    """One reward's outcomes over a round."""

    name: str
    weight: float
    section: RewardSection
    outcomes: Sequence[Outcome | None]
    """None for samples that were not waited for, because too many others had failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleReward:
    """The rewards of one completion."""

    reward: float
    """The weighted sum as the update sees it; NaN where the sample has none."""
    raw_reward: float
    """The sum before any normalisation."""
    components: Mapping[str, float]
    """Each reward's value before its weight, under its name, and its components under ``name/component``."""
    monitors: Mapping[str, float]
    """The values of rewards that are not optimised."""
    token_rewards: tuple[float, ...] = ()
    """The part of ``reward`` that was earned by single tokens, at those tokens."""
    tags: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    """Names of the rewards that failed."""


@dataclass(slots=True)
class _Sum:
    """One sample's sum in the making."""

    reward: float = 0.0
    raw: float = 0.0
    terms: int = 0
    tokens: list[float] = field(default_factory=list)

    def add(self, score: Score, weight: float, normalised: float, scale: float) -> None:
        assert score.value is not None
        self.reward += weight * normalised
        self.raw += weight * score.value
        self.terms += 1
        if score.token_values:
            self.tokens = self.tokens or [0.0] * len(score.token_values)
            self.tokens = [
                sum_ + weight * scale * value for sum_, value in zip(self.tokens, score.token_values, strict=True)
            ]


def aggregate(
    rewards: Sequence[RewardOutcomes], groups: Sequence[Sequence[int]], normalize: Normalize
) -> list[SampleReward]:
    """Return one `SampleReward` a sample, in order. ``groups`` holds the numbers of each group's samples."""
    dropped: set[int] = set()
    scores: dict[str, list[Score | None]] = {}
    for reward in rewards:
        scores[reward.name] = _by_policy(reward, groups, dropped)
    left = [[index for index in group if index not in dropped] for group in groups]
    sums = [_Sum() for group in groups for _ in group]
    for reward in rewards:
        if reward.section.role == "train":
            _add(reward, scores[reward.name], sums, left)
    for index in dropped:
        sums[index].terms = 0
    raw = [total.raw for total in sums]
    values = [total.reward if total.terms else None for total in sums]
    for (shift, scale), members in _statistics(values, left, normalize):
        for index in members:
            sums[index].reward = (sums[index].reward - shift) * scale
            sums[index].tokens = [value * scale for value in sums[index].tokens]
    return [_scored(rewards, index, total, raw[index]) for index, total in enumerate(sums)]


def _by_policy(reward: RewardOutcomes, groups: Sequence[Sequence[int]], dropped: set[int]) -> list[Score | None]:
    """Return each sample's score, or the one that ``on_error`` gives it, or None. Adds to ``dropped``."""
    scores = [outcome if isinstance(outcome, Score) else None for outcome in reward.outcomes]
    policy = reward.section.on_error
    if policy == "constant":
        assert reward.section.error_value is not None
        stand_in = Score(value=reward.section.error_value)
        return [score or stand_in for score in scores]
    if reward.section.role == "monitor":
        return scores
    for group in groups:
        failed = [index for index in group if scores[index] is None]
        own = [score.value for index in group if (score := scores[index]) and score.value is not None]
        if failed and (policy == "drop_group" or (policy == "group_mean" and not own)):
            dropped.update(group)
        elif policy == "group_mean":
            for index in failed:
                scores[index] = Score(value=fmean(own))
        else:
            dropped.update(failed)
    return scores


def _add(
    reward: RewardOutcomes, scores: Sequence[Score | None], sums: Sequence[_Sum], left: Sequence[Sequence[int]]
) -> None:
    values = [score and score.value for score in scores]
    for (shift, scale), members in _statistics(values, left, reward.section.normalize):
        for index in members:
            score = scores[index]
            assert score is not None
            assert score.value is not None
            sums[index].add(score, reward.weight, (score.value - shift) * scale, scale)


def _statistics(
    values: Sequence[float | None], left: Sequence[Sequence[int]], normalize: Normalize
) -> list[tuple[tuple[float, float], list[int]]]:
    """Shift and scale, and the samples that they hold for. ``none`` shifts by 0 and scales by 1, which is exact."""
    groups = left if normalize == "group" else [[index for group in left for index in group]]
    found = []
    for group in groups:
        members = [index for index in group if values[index] is not None]
        numbers = [value for index in members if (value := values[index]) is not None]
        if normalize == "none" or not numbers:
            found.append(((0.0, 1.0), members))
        else:
            found.append(((fmean(numbers), 1.0 / (pstdev(numbers) + STD_EPSILON)), members))
    return found


def _scored(rewards: Sequence[RewardOutcomes], index: int, total: _Sum, raw: float) -> SampleReward:
    components: dict[str, float] = {}
    monitors: dict[str, float] = {}
    tags: list[str] = []
    failed: list[str] = []
    for reward in rewards:
        outcome = reward.outcomes[index]
        if not isinstance(outcome, Score):
            failed.append(reward.name)
            continue
        named = components if reward.section.role == "train" else monitors
        if outcome.value is not None:
            named[reward.name] = outcome.value
        named.update({f"{reward.name}/{name}": value for name, value in outcome.components.items()})
        tags += outcome.tags
    has_reward = total.terms > 0
    return SampleReward(
        reward=total.reward if has_reward else math.nan,
        raw_reward=raw if has_reward else math.nan,
        components=components,
        monitors=monitors,
        token_rewards=tuple(total.tokens) if has_reward else (),
        tags=tuple(dict.fromkeys(tags)),
        failed=tuple(failed),
    )
