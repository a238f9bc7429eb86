"""The metrics of an evaluation, with standard errors. Plain Python: no engine, no actor.

Samples of one prompt are alike, so that 8 samples of 100 prompts say less than 800 independent ones. So standard errors
are clustered by prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from statistics import fmean

from rlkl.rollout.collect import raw_reward
from rlkl.types import Rollout, RolloutGroup

FEWEST_PROMPTS = 10
"""With fewer prompts there is no tenth of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over all samples, and its standard error; None with a single prompt."""

    mean: float
    error: float | None


def estimate(clusters: Sequence[Sequence[float]]) -> Estimate | None:
    """Return the mean of all values, with a standard error clustered by prompt; None without a value.

    With G clusters, N values and the sum r_i of the differences to the mean in cluster i, the error is
    sqrt(G / (G - 1) * sum_i r_i^2) / N. With equally many values in each cluster this is the standard deviation of the
    clusters' means divided by sqrt(G).
    """
    filled = [values for values in clusters if values]
    count = sum(map(len, filled))
    if not count:
        return None
    mean = fmean(value for values in filled for value in values)
    groups = len(filled)
    if groups == 1:
        return Estimate(mean=mean, error=None)
    squares = sum(math.fsum(value - mean for value in values) ** 2 for values in filled)
    return Estimate(mean=mean, error=math.sqrt(groups / (groups - 1) * squares) / count)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the chance that one of ``k`` samples is right, drawn from ``n`` of which ``c`` are: 1 - C(n-c,k)/C(n,k).

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    return 1.0 - comb(n - c, k) / comb(n, k)


def powers_of_two(most: int) -> list[int]:
    """Return 1, 2, 4, ... up to ``most``."""
    return [1 << exponent for exponent in range(most.bit_length())]


def pass_metrics(rewards: Sequence[Sequence[float]], *, samples: int) -> dict[str, float]:
    """Return ``eval/pass@k`` over prompts, for k = 1, 2, 4, ... up to ``samples``; nothing unless rewards are 0 or 1.

    A prompt with fewer than k scored samples does not count.
    """
    if any(reward not in (0.0, 1.0) for of_prompt in rewards for reward in of_prompt):
        return {}
    metrics = {}
    for k in powers_of_two(samples):
        found = [pass_at_k(len(row), row.count(1.0), k) for row in rewards if len(row) >= k]
        if found:
            metrics[f"eval/pass@{k}"] = fmean(found)
    return metrics


def worst_tenth(rewards: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return ``eval/reward_worst_tenth``: the mean reward of the prompts with the lowest mean rewards.

    A tenth of the prompts, rounded up; all prompts count alike. Nothing with fewer than `FEWEST_PROMPTS` of them.
    """
    means = sorted(fmean(of_prompt) for of_prompt in rewards if of_prompt)
    if len(means) < FEWEST_PROMPTS:
        return {}
    return {"eval/reward_worst_tenth": fmean(means[: math.ceil(len(means) / 10)])}


def evaluation_metrics(
    groups: Sequence[RolloutGroup], greedy: Sequence[RolloutGroup], gaps: Sequence[float] = ()
) -> dict[str, float]:
    """Return all metrics of an evaluation; see `rlkl.tracking.metrics.evaluation`.

    ``groups`` hold the sampled completions by prompt, ``greedy`` the greedy ones. ``gaps`` has log policy - log
    reference of each sampled completion in order; empty if they are unknown.
    """
    rewards = [[raw_reward(rollout) for rollout in group.rollouts if rollout.scored] for group in groups]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    metrics = _named("mean", rewards)
    for name in dict.fromkeys(name for rollout in rollouts for name in _scores(rollout)):
        metrics |= _named(name, [[s[name] for s in map(_scores, group.rollouts) if name in s] for group in groups])
    metrics |= _named("greedy", [[raw_reward(r) for r in group.rollouts if r.scored] for group in greedy])
    metrics |= worst_tenth(rewards)
    metrics |= pass_metrics(rewards, samples=max(len(group.rollouts) for group in groups))
    if gaps:
        assert len(gaps) == len(rollouts), "one gap a sampled completion"
        each = iter(gaps)
        metrics |= _named("kl", [[next(each) for _ in group.rollouts] for group in groups])
    metrics["eval/length_mean"] = fmean(len(rollout.completion.token_ids) for rollout in rollouts)
    metrics["eval/truncated_fraction"] = fmean(rollout.completion.finish_reason == "length" for rollout in rollouts)
    everything = [*rollouts, *(rollout for group in greedy for rollout in group.rollouts)]
    metrics["eval/failed"] = float(sum(len(rollout.failed) for rollout in everything))
    return metrics


def _scores(rollout: Rollout) -> Mapping[str, float]:
    return {**rollout.components, **rollout.monitors}


def _named(name: str, clusters: Sequence[Sequence[float]]) -> dict[str, float]:
    found = estimate(clusters)
    if found is None:
        return {}
    return {f"eval/{name}": found.mean} | ({} if found.error is None else {f"eval/{name}_se": found.error})
