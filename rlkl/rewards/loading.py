"""From a recipe's rewards and a caller's functions to a `RewardSet`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from rlkl.errors import RewardInputError, did_you_mean
from rlkl.recipe import RewardSection
from rlkl.rewards.binding import parameters_of
from rlkl.rewards.decorator import declaration_of
from rlkl.rewards.runner import Reward, RewardSet
from rlkl.tasks import task_name, task_reward

_TAKEN_NAMES = ("mean", "std", "failed")
"""``reward/<name>`` is a curve of its own for these."""

_FORMS = "path/to/file.py:function, package.module:function, or task:<name>"


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
            f"no reward: nothing to learn from. Put 'rewards: [{{function: ...}}]' into the recipe ({_FORMS}), or call "
            "rlkl.train(recipe, rewards=[my_function])"
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
        function = _import_function(section.function)
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


def _import_function(reference: str) -> Callable[..., Any]:
    location, _, attribute = reference.rpartition(":")
    if not location or not attribute:
        raise RewardInputError(f"rewards[].function = '{reference}' names no function; expected {_FORMS}")
    is_file = location.endswith(".py") or "/" in location
    module = _import_file(Path(location).expanduser()) if is_file else _import_module(location)
    functions = {name: value for name, value in vars(module).items() if callable(value) and not name.startswith("__")}
    if attribute not in functions:
        found = "is not callable" if hasattr(module, attribute) else "does not exist"
        raise RewardInputError(
            f"rewards[].function = '{reference}': '{attribute}' {found} in {location}; "
            f"{did_you_mean(attribute, functions)}"
        )
    return functions[attribute]


def _import_file(path: Path) -> ModuleType:
    path = path.absolute()
    if not path.is_file():
        if not path.parent.is_dir():
            raise RewardInputError(f"there is no reward file '{path}', nor the folder '{path.parent}'")
        files = (file.name for file in path.parent.glob("*.py"))
        raise RewardInputError(f"there is no reward file '{path}'; {did_you_mean(path.name, files)}")
    content_hash = hashlib.blake2b(str(path).encode() + path.read_bytes(), digest_size=8).hexdigest()
    name = f"rlkl_reward_{path.stem}_{content_hash}"
    if name in sys.modules:  # two rewards of one file share its module, an edited file gets a new one
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RewardInputError(f"reward file '{path}' cannot be imported: its name must end in .py")
    _make_importable(path.parent)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file raises is told with its path
        del sys.modules[name]
        raise RewardInputError(f"importing '{path}' raised {type(error).__name__}: {error}") from error
    return module


def _import_module(name: str) -> ModuleType:
    _make_importable(Path.cwd())
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever a user's module raises is told with its name
        raise RewardInputError(
            f"importing '{name}' (from {Path.cwd()} or an installed package) raised {type(error).__name__}: {error}"
        ) from error


def _make_importable(folder: Path) -> None:
    """Put a folder last on the import path, as Python does with a script's own, but without hiding anything."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
