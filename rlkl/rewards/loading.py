"""From a recipe's rewards and a caller's functions to a `RewardSet`."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from rlkl.errors import RewardInputError
from rlkl.importing import Importer
from rlkl.recipe import RewardSection
from rlkl.rewards.binding import parameters_of
from rlkl.rewards.decorator import declaration_of
from rlkl.rewards.runner import Reward, RewardSet
from rlkl.tasks import task_name, task_reward

_TAKEN_NAMES = ("mean", "std", "failed")
"""``reward/<name>`` is a curve of its own for these."""

_IMPORTER = Importer(
    key="rewards[].function",
    noun="reward",
    forms="path/to/file.py:function, package.module:function, or task:<name>",
    error=RewardInputError,
)


def load_rewards(sections: Sequence[RewardSection], functions: Sequence[Callable[..., Any]] = ()) -> RewardSet:
    """Import the recipe's rewards and add ``functions``, which weigh 1 unless ``@rlkl.reward`` says otherwise.

    Files and modules are looked up from the working directory. A reward file may import others beside it.

    Raises:
        RewardInputError: there is no reward at all, one cannot be imported, its signature cannot be used, or two have
            the same name.
    """
    rewards = [*map(_from_section, sections), *map(_from_function, functions)]
    if not rewards:
        raise RewardInputError(
            "no reward: nothing to learn from. Put 'rewards: [{function: ...}]' into the recipe "
            f"({_IMPORTER.forms}), or call rlkl.train(recipe, rewards=[my_function])"
        )
    for name, count in Counter(reward.name for reward in rewards).items():
        if count > 1:
            raise RewardInputError(f"{count} rewards are called '{name}'; give each its own name (rewards[].name)")
    return RewardSet(rewards)


def _from_section(section: RewardSection) -> Reward:
    task = task_name(section.function)
    if task is not None:
        function, default_name = task_reward(task), task.rpartition("/")[2]
    else:
        function = _IMPORTER.callable_at(section.function)
        default_name = _name_of(function)
    declared = declaration_of(function)
    weight = section.weight if "weight" in section.model_fields_set else declared.weight
    return _reward(function, section.name or declared.name or default_name, weight)


def _from_function(function: Callable[..., Any]) -> Reward:
    if not callable(function):
        raise RewardInputError(f"rewards = [...] takes functions, got {function!r}; references go into the recipe")
    declared = declaration_of(function)
    return _reward(function, declared.name or _name_of(function), declared.weight)


def _reward(function: Callable[..., Any], name: str, weight: float) -> Reward:
    if not re.fullmatch(r"[\w.-]+", name):
        raise RewardInputError(
            f"'{name}' is no name for a reward (letters, digits, '_', '-', '.'); set rewards[].name or use "
            "@rlkl.reward(name=...)"
        )
    if name in _TAKEN_NAMES:
        raise RewardInputError(f"a reward cannot be called '{name}': reward/{name} is another curve; name it otherwise")
    if inspect.iscoroutinefunction(function):
        raise RewardInputError(f"reward '{name}' is an async function; make it a plain one")
    return Reward(
        name=name,
        weight=weight,
        function=function,
        parameters=parameters_of(function),
        fingerprint=_fingerprint(function),
    )


def _name_of(function: Callable[..., Any]) -> str:
    """A function's name; an instance with ``__call__`` goes by its class."""
    return getattr(function, "__name__", type(function).__name__)


def _fingerprint(function: Callable[..., Any]) -> str:
    """Hash of the source (of the class, for an instance); of the qualified name where no source can be had."""
    described = function if inspect.isroutine(function) else type(function)
    try:
        text = inspect.getsource(described)
    except (OSError, TypeError):
        text = f"{described.__module__}.{described.__qualname__}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
