"""From prompts to requests, and from completions to scored groups. Pure: no engine, no actor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean, pstdev

from rlkl.rollout.engine import Request
from rlkl.seeds import derive_seed
from rlkl.types import Completion, Prompt, RolloutGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One prompt as it was drawn. ``position`` counts all draws of the run: it seeds the sampling, so a prompt that
    comes up twice in a step is not sampled twice the same."""

    prompt: Prompt
    position: int


def build_requests(draws: Sequence[Draw], *, samples: int, seed: int) -> list[Request]:
    """``samples`` requests for each prompt, prompt by prompt."""
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
    """The requests in order, cut into one nearly equal part a worker."""
    size, extra = divmod(len(requests), workers)
    starts = [worker * size + min(worker, extra) for worker in range(workers + 1)]
    return [requests[start:end] for start, end in pairwise(starts)]


def completions_of(
    completions: Sequence[Completion], *, samples: int, decode: Callable[[list[list[int]]], list[str]]
) -> Iterator[list[Completion]]:
    """Completions prompt by prompt, in the order of `build_requests`, with their text."""
    texts = decode([list(completion.token_ids) for completion in completions])
    with_text = [replace(completion, text=text) for completion, text in zip(completions, texts, strict=True)]
    for start in range(0, len(with_text), samples):
        yield with_text[start : start + samples]


def rollout_metrics(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Rewards and lengths over all rollouts of a step, selected or not. Definitions: `rlkl.tracking.metrics`."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    completions = [rollout.completion for rollout in rollouts]
    names = rollouts[0].components
    return {
        "reward/mean": fmean(rollout.reward for rollout in rollouts),
        "reward/std": fmean(pstdev(rollout.reward for rollout in group.rollouts) for group in groups),
        **{f"reward/{name}": fmean(rollout.components[name] for rollout in rollouts) for name in names},
        "rollout/length_mean": fmean(len(completion.token_ids) for completion in completions),
        "rollout/truncated_fraction": fmean(completion.finish_reason == "length" for completion in completions),
        "rollout/empty_fraction": fmean(not completion.text for completion in completions),
    }
