"""Scoring texts with rewards as a recipe names them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlkl.recipe import RewardSection
from rlkl.rewards import RewardSet, load_rewards
from rlkl.rewards.function.arguments import State
from rlkl.rewards.scoring.aggregate import SampleReward
from rlkl.rewards.scoring.reward_set import ScoredRound
from rlkl.types import Completion, Prompt

STATE = State(step=3, steps=10, epoch=0.5, seed=7)


def prompts(count: int) -> list[Prompt]:
    return [
        Prompt(id=f"row-{n}", text=f"{n}+1=", token_ids=(n, 1), columns={"answer": str(n + 1)}) for n in range(count)
    ]


def completion(text: str) -> Completion:
    """One token a character, and the end-of-sequence token 1."""
    token_ids = (*(ord(character) for character in text), 1)
    return Completion(token_ids=token_ids, logprobs=(-1.0,) * len(token_ids), finish_reason="stop", text=text)


@contextmanager
def loaded(
    *sections: dict[str, Any], folder: Path | None = None, first_step: int = 0, **sum_: Any
) -> Iterator[RewardSet]:
    """Rewards from recipe sections; ``folder`` is the run's."""
    rewards = load_rewards([RewardSection.model_validate(section) for section in sections], **sum_)
    if folder is not None:
        rewards.open_folder(folder, first_step=first_step)
    try:
        yield rewards
    finally:
        rewards.close()


def score(
    rewards: RewardSet, *groups: Sequence[str], order: Sequence[int] | None = None, state: State = STATE
) -> ScoredRound:
    """Score groups of equally many texts, taken in in ``order``."""
    samples = len(groups[0])
    texts = [text for group in groups for text in group]
    scoring = rewards.open_round(prompts(len(groups)), samples=samples, state=state, draws=range(len(groups)))
    for index in order or range(len(texts)):
        scoring.add(index, completion(texts[index]))
    return scoring.finish()


def rounds(function: Callable[..., Any], *, samples: int = 2, at: Sequence[Prompt] = ()) -> Sequence[SampleReward]:
    """Check a function and score completions of 0, 1, 2 ... letters x with it, ``samples`` of each prompt."""
    at = at or prompts(2)
    rewards = load_rewards([], [function])
    rewards.check(at)
    scoring = rewards.open_round(at, samples=samples, state=STATE, draws=range(len(at)))
    for index in range(len(at) * samples):
        scoring.add(index, completion("x" * index))
    return scoring.finish().scored


def values(done: ScoredRound) -> list[float | None]:
    """The rewards, None where there is none."""
    return [None if scored.reward != scored.reward else scored.reward for scored in done.scored]
