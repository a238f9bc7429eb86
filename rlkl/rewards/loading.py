"""From a recipe's rewards and a caller's functions to a `RewardSet`."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from rlkl.errors import RewardInputError
from rlkl.recipe import Normalize, Recipe, RewardSection
from rlkl.rewards.execution.call import RewardFunction
from rlkl.rewards.function.decorator import declaration_of
from rlkl.rewards.function.fingerprint import described
from rlkl.rewards.function.result import NAME
from rlkl.rewards.function.signature import parameters_of
from rlkl.rewards.function.source import IMPORTER, Source, check_settings, fingerprint_of, source_of
from rlkl.rewards.scoring.reward_set import LoadedReward, RewardSet

_TAKEN_NAMES = ("mean", "std", "failed", "dropped")
"""``reward/<name>`` is a curve of its own for these."""
EVAL_NAMES = (
    "greedy",
    "greedy_se",
    "kl",
    "kl_se",
    "mean_se",
    "length_mean",
    "reward_worst_tenth",
    "truncated_fraction",
)
"""``eval/<name>`` is a curve of its own for these."""


def load_rewards(
    sections: Sequence[RewardSection],
    functions: Sequence[Callable[..., Any]] = (),
    *,
    normalize: Normalize = "none",
    for_evaluation: bool = False,
    optional: bool = False,
    key: str = "rewards",
) -> RewardSet:
    """Import the recipe's rewards and add ``functions``, with weight 1 unless ``@rlkl.reward`` gives another.

    Files and modules are looked up from the working directory. A reward file may import others beside it.
    ``normalize``: what is done with the sum. ``for_evaluation``: monitors alone are enough, and names of
    `EVAL_NAMES` are refused. ``optional``: the rule learns from no reward, so none is needed, and all samples then have
    a reward of 0. ``key``: of the sections in the recipe.

    Raises:
        RewardInputError: one is needed and there is none, one cannot be imported, its signature or its settings cannot
            be used, or two have the same name.
    """
    named = [replace(_from_section(section), key=f"{key}[{number}]") for number, section in enumerate(sections)]
    rewards = [*named, *map(_from_function, functions)]
    if for_evaluation and rewards:
        check_eval_names(rewards)
    elif not optional and all(reward.section.role == "monitor" for reward in rewards):
        only = "only monitors" if rewards else "no reward"
        raise RewardInputError(
            f"{only}: nothing to learn from. Put 'rewards: [{{function: ...}}]' into the recipe "
            f"({IMPORTER.forms}), or call rlkl.train(recipe, rewards=[my_function])"
        )
    for name, count in Counter(reward.name for reward in rewards).items():
        if count > 1:
            raise RewardInputError(f"{count} rewards are called '{name}'; give each its own name (rewards[].name)")
    return RewardSet(rewards, normalize=normalize, optional=optional)


def uses_of_rewards(recipe: Recipe, *, monitored: bool = False) -> list[str]:
    """Return what a recipe computes from rewards, for a rule that learns from none. ``monitored``: it has monitors."""
    uses = {
        f"data.sampler = {recipe.data.sampler} draws by pass rates": recipe.data.sampler != "uniform",
        f"checkpoint.best = {recipe.checkpoint.best} is a reward": (recipe.checkpoint.best or "").startswith("reward/"),
        "eval scores with the recipe's rewards": recipe.eval is not None and not (recipe.eval.rewards or monitored),
        f"scoring.normalize = {recipe.scoring.normalize} is of rewards": recipe.scoring.normalize != "none",
    }
    return [use for use, applies in uses.items() if applies]


def check_uses(recipe: Recipe, rewards: RewardSet) -> None:
    """Raise `RewardInputError` if no reward is trained on, and the recipe uses one all the same."""
    if not rewards.trains and (uses := uses_of_rewards(recipe, monitored=bool(rewards.rewards))):
        raise RewardInputError(
            f"{uses[0]}, and the recipe has none to learn from. Add rewards: [{{function: ...}}], or leave that key out"
        )


def check_eval_names(rewards: Iterable[LoadedReward]) -> None:
    """Raise `RewardInputError` if ``eval/<name>`` of a reward would be another curve."""
    names = [reward.name for reward in rewards]
    for name in names:
        if name in EVAL_NAMES or (name.endswith("_se") and name.removesuffix("_se") in names):
            raise RewardInputError(
                f"with the section eval, a reward cannot be called '{name}': eval/{name} is another curve; set "
                "rewards[].name"
            )


def _from_section(section: RewardSection) -> LoadedReward:
    source = source_of(section.function, section.settings)
    found = source.found()
    check_settings(found, section.settings, section.function)
    declared = declaration_of(found)
    is_task = section.function.startswith("task:")
    default_name = section.function.rpartition("/")[2].removeprefix("task:") if is_task else _name_of(found)
    weight = declared.weight if section.weight is None else section.weight
    return _loaded(section, source.build(), section.name or declared.name or default_name, weight, source)


def _from_function(function: Callable[..., Any]) -> LoadedReward:
    if not callable(function):
        raise RewardInputError(f"rewards = [...] takes functions, got {function!r}; references go into the recipe")
    declared = declaration_of(function)
    section = RewardSection(function=f"{described(function).__module__}:{_name_of(function)}", mode="inline")
    return _loaded(section, function, declared.name or _name_of(function), declared.weight, None)


def _loaded(
    section: RewardSection, function: Callable[..., Any], name: str, weight: float, source: Source | None
) -> LoadedReward:
    if not NAME.fullmatch(name):
        raise RewardInputError(
            f"'{name}' is no name for a reward (letters, digits, '_', '-', '.'); set rewards[].name or use "
            "@rlkl.reward(name=...)"
        )
    if name in _TAKEN_NAMES:
        raise RewardInputError(f"a reward cannot be called '{name}': reward/{name} is another curve; name it otherwise")
    parameters = parameters_of(function)
    if isinstance(function, functools.partial):
        parameters = parameters.without(function.keywords)
    return LoadedReward(
        name=name,
        weight=weight,
        section=section,
        source=source,
        function=RewardFunction(function),
        parameters=parameters,
        fingerprint=fingerprint_of(source, function),
    )


def _name_of(function: Any) -> str:
    """Return a function's name; a partial goes by its function, an instance with ``__call__`` by its class."""
    if isinstance(function, functools.partial) and NAME.fullmatch(_name_of(function.func)):
        return _name_of(function.func)
    return getattr(function, "__name__", type(function).__name__)
