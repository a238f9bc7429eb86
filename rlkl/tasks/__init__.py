"""Built-in worlds: data, rewards and a base model that need no download. Imports no torch until one is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rlkl.errors import InputError, did_you_mean
from rlkl.tasks.arithmetic import Arithmetic
from rlkl.tasks.base import Task, in_test
from rlkl.tasks.cache import cached_base_model
from rlkl.tasks.reviews import Reviews
from rlkl.tasks.shapes import Shapes
from rlkl.tasks.two_tasks import ReviewsAndArithmetic

__all__ = ["TASKS", "Task", "base_model", "get_task", "model_task", "task_name", "task_reward", "task_rows"]

_PREFIX = "task:"
_T = TypeVar("_T")

Rows = list[dict[str, Any]]


TASKS: dict[str, Task] = {
    "arithmetic": Arithmetic(),
    "reviews": Reviews(),
    "shapes": Shapes(),
    "reviews_and_arithmetic": ReviewsAndArithmetic(),
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
    """Return the rows of a task, or of a part of it: ``arithmetic``, ``arithmetic/test``, ``reviews/pairs/train``.

    Every task has the parts ``train`` and ``test``, which share no row. Further rows are divided by their
    prompts; those with a prompt of their own are in ``train``.

    Raises:
        InputError: there is no such task, or it has no rows of that name.
    """
    task, _, part = name.partition("/")
    found = get_task(task)
    return _part(_parts_of_rows(found, task), task, part, "rows")() if part else found.rows()


def _parts_of_rows(found: Task, task: str) -> dict[str, Callable[[], Rows]]:
    """Return the parts of a task's rows. If it has no test rows of its own, a hash of the id chooses them."""
    further = dict(found.further_rows())
    if "test" in further:
        return {"train": found.rows, **further}

    def split(*, test: bool) -> Rows:
        return [row for row in found.rows() if in_test(task, row["id"]) == test]

    parts: dict[str, Callable[[], Rows]] = {"train": lambda: split(test=False), "test": lambda: split(test=True)}

    def divided(rows: Callable[[], Rows], part: str) -> Rows:
        held_out = {row["prompt"] for row in parts["test"]()}
        return [row for row in rows() if (row["prompt"] in held_out) == (part == "test")]

    of_further = {f"{name}/{part}": partial(divided, rows, part) for name, rows in further.items() for part in parts}
    return {**parts, **further, **of_further}


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


def model_task(name: str) -> Task:
    """Return the task whose base model a name means: ``arithmetic``, or a further model ``arithmetic/teacher``.

    Raises:
        InputError: there is no such task, or it has no model of that name.
    """
    task, _, part = name.partition("/")
    found = get_task(task)
    return _part(found.further_models(), task, part, "model") if part else found


def base_model(name: str) -> Path:
    """Return the folder of a task's base model or further model. It is built on first use and then cached.

    Raises:
        InputError: there is no such task, or it has no model of that name.
    """
    return cached_base_model(name, model_task(name))
