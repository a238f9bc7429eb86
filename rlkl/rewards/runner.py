"""Scoring completions with a set of rewards."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlkl.errors import RewardError, RewardInputError
from rlkl.rewards.binding import Parameters, bind_arguments
from rlkl.seeds import derive_seed
from rlkl.types import Completion, Prompt

_SHOWN_CHARACTERS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """One reward function, ready to be called."""

    name: str
    weight: float
    function: Callable[..., Any]
    parameters: Parameters
    fingerprint: str
    """Hash of the function's source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The rewards of one completion: the weighted sum, and each reward by name before its weight."""

    reward: float
    components: Mapping[str, float]


class RewardSet:
    """All rewards of a run. Made by `load_rewards`."""

    def __init__(self, rewards: Sequence[Reward]) -> None:
        self._rewards = tuple(rewards)

    @property
    def fingerprints(self) -> dict[str, str]:
        """A hash of each reward's source, by name: a checkpoint keeps them, so that a resumed run notices a change."""
        return {reward.name: reward.fingerprint for reward in self._rewards}

    def check(self, prompts: Sequence[Prompt]) -> None:
        """See on real rows, without calling anything, that every argument of every reward can be filled in.

        Raises:
            RewardInputError: an argument is unknown; the message lists the names that there are.
        """
        nothing = Completion(token_ids=(), logprobs=(), finish_reason="stop")
        for prompt in prompts:
            for reward in self._rewards:
                try:
                    bind_arguments(reward.parameters, _available(prompt, nothing, random.Random(0)))
                except RewardInputError as error:
                    raise RewardInputError(f"reward '{reward.name}', prompt {prompt.id}: {error}") from error

    def score(self, prompt: Prompt, completions: Sequence[Completion], *, step: int, seed: int) -> list[Scored]:
        """Score the completions of one prompt, in order. ``completions`` carry their text.

        Raises:
            RewardError: a function raised, or did not return a finite number.
        """
        return [
            self._score_one(prompt, completion, seeds=(seed, step, sample_index))
            for sample_index, completion in enumerate(completions)
        ]

    def _score_one(self, prompt: Prompt, completion: Completion, *, seeds: tuple[int, int, int]) -> Scored:
        seed, step, sample_index = seeds
        components: dict[str, float] = {}
        for reward in self._rewards:
            rng = random.Random(derive_seed(seed, "reward", step, prompt.id, sample_index, reward.name))
            components[reward.name] = _call(reward, prompt, completion, rng)
        return Scored(
            reward=sum(reward.weight * components[reward.name] for reward in self._rewards), components=components
        )


def _available(prompt: Prompt, completion: Completion, rng: random.Random) -> dict[str, Any]:
    return {
        **prompt.columns,
        "prompt": prompt.text,
        "prompt_ids": prompt.token_ids,
        "completion": completion.text,
        "completion_ids": completion.token_ids,
        "rng": rng,
    }


def _call(reward: Reward, prompt: Prompt, completion: Completion, rng: random.Random) -> float:
    shown = completion.text[:_SHOWN_CHARACTERS] + ("..." if len(completion.text) > _SHOWN_CHARACTERS else "")
    where = f"on prompt {prompt.id}, completion {shown!r}"
    try:
        value = reward.function(**bind_arguments(reward.parameters, _available(prompt, completion, rng)))
    except (
        Exception,
        SystemExit,
    ) as error:  # whatever a user's function raises is told with the sample that made it raise
        raise RewardError(f"reward '{reward.name}' raised {type(error).__name__} {where}: {error}") from error
    number = _finite_number(value)
    if number is None:
        raise RewardError(
            f"reward '{reward.name}' returned {repr(value)[:_SHOWN_CHARACTERS]} ({type(value).__name__}) {where}; "
            "expected a finite number"
        )
    return number


def _finite_number(value: Any) -> float | None:
    """The value as a float; None where it is not one finite real number. Text is none, even if it could be parsed."""
    if isinstance(value, (str, bytes)):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a tensor of several elements
        return None
    return number if math.isfinite(number) else None
