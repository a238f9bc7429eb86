"""From prompts to requests, and from completions to scored groups. Pure: no engine, no actor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean, pstdev

from rlkl.rollout.engine import Request
from rlkl.seeds import derive_seed
from rlkl.types import Completion, Prompt, Rollout, RolloutGroup

Decode = Callable[[list[list[int]]], list[str]]
"""From token ids to texts without special tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One prompt as it was drawn. ``position`` counts all draws of the run: it seeds the sampling, so a prompt that
    comes up twice in a step is not sampled twice the same."""

    prompt: Prompt
    position: int


def build_requests(draws: Sequence[Draw], *, samples: int, seed: int) -> list[Request]:
    """Build ``samples`` requests for each prompt, prompt by prompt."""
    return [
        Request(
            prompt_token_ids=draw.prompt.token_ids,
            images=draw.prompt.images,
            seed=derive_seed(seed, "rollout", draw.position, draw.prompt.id, sample),
        )
        for draw in draws
        for sample in range(samples)
    ]


def share_out(requests: Sequence[Request], workers: int) -> list[Sequence[Request]]:
    """Cut the requests, in order, into one nearly equal part a worker."""
    size, extra = divmod(len(requests), workers)
    starts = [worker * size + min(worker, extra) for worker in range(workers + 1)]
    return [requests[start:end] for start, end in pairwise(starts)]


def with_text(completions: Sequence[Completion], decode: Decode) -> list[Completion]:
    """Return the completions with their text.

    No completion, no call of ``decode``: some tokenizers decode an empty list to one empty text.
    """
    if not completions:
        return []
    texts = decode([list(completion.token_ids) for completion in completions])
    return [replace(completion, text=text) for completion, text in zip(completions, texts, strict=True)]


def rollout_metrics(groups: Sequence[RolloutGroup], *, rewarded: bool = True) -> dict[str, float]:
    """Compute rewards and lengths over all rollouts of a step, selected or not. See `rlkl.tracking.metrics`.

    ``rewarded``: whether a reward has scored them. Else there is no mean reward.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    completions = [rollout.completion for rollout in rollouts]
    rewards = [[raw_reward(rollout) for rollout in group.rollouts if rollout.scored] for group in groups]
    metrics: dict[str, float] = {}
    if rewarded and any(rewards):  # else nothing has a reward, and there is no mean
        metrics["reward/mean"] = fmean(reward for group in rewards for reward in group)
        metrics["reward/std"] = fmean(pstdev(group) for group in rewards if group)
        metrics["rollout/equal_fraction"] = fmean(len(set(group)) == 1 for group in rewards if group)
    return {
        **metrics,
        **_means("reward", [rollout.components for rollout in rollouts]),
        **_means("monitor", [rollout.monitors for rollout in rollouts]),
        "reward/failed": float(sum(len(rollout.failed) for rollout in rollouts)),
        "reward/dropped": float(sum(not rollout.scored for rollout in rollouts)),
        "rollout/length_mean": fmean(len(completion.token_ids) for completion in completions),
        "rollout/truncated_fraction": fmean(completion.finish_reason == "length" for completion in completions),
        "rollout/empty_fraction": fmean(not completion.text for completion in completions),
    }


def raw_reward(rollout: Rollout) -> float:
    """Return the weighted sum of the rewards before any normalisation."""
    return rollout.reward if rollout.raw_reward is None else rollout.raw_reward


def _means(kind: str, rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average each reward over the rollouts that it has scored."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {f"{kind}/{name}": fmean(row[name] for row in rows if name in row) for name in names}
