"""Built-in worlds: data, rewards and a base model that need no download. Imports no torch until one is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rlkl.errors import InputError, did_you_mean
from rlkl.tasks.arithmetic import Arithmetic
from rlkl.tasks.base import Task
from rlkl.tasks.cache import cached_base_model
from rlkl.tasks.reviews import Reviews
from rlkl.tasks.shapes import Shapes

__all__ = ["TASKS", "Task", "base_model", "get_task", "task_name", "task_reward", "task_rows"]

_PREFIX = "task:"
_T = TypeVar("_T")

TASKS: dict[str, Task] = {
    "arithmetic": Arithmetic(),
    "reviews": Reviews(),
    "shapes": Shapes(),
}


def task_name(reference: str) -> str | None:
    """Return the name after ``task:`` in a recipe value such as ``task:arithmetic``; None if the value is no task."""
    return reference.removeprefix(_PREFIX) if reference.startswith(_PREFIX) else None


def get_task(name: str) -> Task:
    """Return the task of that name, without the ``task:`` prefix.

    Raises:
        InputError: there is no such task.
    """
    if name not in TASKS:
        raise InputError(f"no built-in task is called '{name}'; {did_you_mean(name, TASKS)}")
    return TASKS[name]


def task_rows(name: str) -> list[dict[str, Any]]:
    """Return the rows of a task, or of a part of it: ``arithmetic``, ``reviews/pairs``.

    Raises:
        InputError: there is no such task, or it has no rows of that name.
    """
    task, _, part = name.partition("/")
    found = get_task(task)
    return _part(found.further_rows(), task, part, "rows")() if part else found.rows()


def task_reward(name: str) -> Callable[..., float | None]:
    """Return the reward of a task, or another one that it has: ``arithmetic``, ``reviews/gold``.

    Raises:
        InputError: there is no such task, or it has no reward of that name.
    """
    task, _, part = name.partition("/")
    found = get_task(task)
    return _part(found.further_rewards(), task, part, "reward") if part else found.reward


def _part(parts: Mapping[str, _T], task: str, part: str, kind: str) -> _T:
    if part not in parts:
        raise InputError(f"task:{task} has no {kind} called '{part}'; {did_you_mean(part, parts)}")
    return parts[part]


def base_model(name: str) -> Path:
    """Return the folder of the task's base model. It is built on first use and then cached (see `tasks.cache`).

    Raises:
        InputError: there is no such task.
    """
    return cached_base_model(name, get_task(name))
