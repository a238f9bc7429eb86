"""Rewards: plain Python functions whose arguments are filled in by name; docs/rewards.md has every option.

A reward function scores one completion and may ask for any of these, by parameter name:

- ``completion``: the sampled text, without special tokens; ``completion_ids``: its token ids, special tokens included;
  ``finish_reason``: ``stop``, or ``length`` where it was cut off
- ``prompt``: the text that the model was given, chat template included; ``prompt_ids``: its token ids; ``images``: its
  pictures, as PIL images
- any column of the prompt's data row, under the column's name (one of the names here wins over a column)
- ``rng``: a `random.Random` of this very sample; ``state``: the step, the epoch and the seed (`State`)

With ``prompts`` or ``completions`` among its parameters it gets many samples at once, all of the above but ``state`` as
lists; with ``group`` all samples of one prompt (`Group`). It returns a number, None (it abstains), a dict of named
numbers or a `Reward`, and a list of these for many samples. It may be async, or a class with ``setup`` and ``close``.

A parameter with a default is filled in where its name is known; ``**columns`` takes all that is left.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlkl.rewards.function.decorator import reward
    from rlkl.rewards.function.result import Reward
    from rlkl.rewards.loading import load_rewards
    from rlkl.rewards.scoring.reward_set import RewardSet

__all__ = ["Reward", "RewardSet", "load_rewards", "reward"]

_HOMES = {
    "Reward": "function.result",
    "RewardSet": "scoring.reward_set",
    "load_rewards": "loading",
    "reward": "function.decorator",
}
"""Loaded when first used: a process that scores needs little of this package, and must start quickly."""


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'rlkl.rewards' has no attribute '{name}'")
    return getattr(import_module(f"rlkl.rewards.{_HOMES[name]}"), name)
