"""Rewards: plain Python functions whose arguments are filled in by name.

A reward function scores one completion and returns a finite number. It may ask for any of these, by parameter name:

- ``completion``: the sampled text, without special tokens; ``completion_ids``: its token ids, special tokens included
- ``prompt``: the text that the model was given, chat template included; ``prompt_ids``: its token ids
- any column of the prompt's data row, under the column's name (one of the names above wins over a column)
- ``rng``: a `random.Random` of this very sample, for rewards that draw

A parameter with a default is filled in where its name is known, and ``**columns`` takes everything that is left.
"""

from rlkl.rewards.decorator import reward
from rlkl.rewards.loading import load_rewards
from rlkl.rewards.runner import RewardSet, Scored

__all__ = ["RewardSet", "Scored", "load_rewards", "reward"]
