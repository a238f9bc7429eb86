"""Built-in worlds: data, a gold reward and a base model that need no download. Imports no torch until one is built."""

from __future__ import annotations

from pathlib import Path

from rlkl.errors import InputError, did_you_mean
from rlkl.tasks.arithmetic import Arithmetic
from rlkl.tasks.base import Task
from rlkl.tasks.cache import cached_base_model

__all__ = ["TASKS", "Task", "base_model", "get_task", "task_name"]

_PREFIX = "task:"

TASKS: dict[str, Task] = {
    "arithmetic": Arithmetic(),
}


def task_name(reference: str) -> str | None:
    """The name in a recipe value such as ``task:arithmetic``; None where the value is no task."""
    return reference.removeprefix(_PREFIX) if reference.startswith(_PREFIX) else None


def get_task(name: str) -> Task:
    """The task of that name, without the ``task:`` prefix.

    Raises:
        InputError: there is no such task.
    """
    if name not in TASKS:
        raise InputError(f"no built-in task is called '{name}'; {did_you_mean(name, TASKS)}")
    return TASKS[name]


def base_model(name: str) -> Path:
    """The Hugging Face folder of the task's base model, built on first use and then cached (see `tasks.cache`).

    Raises:
        InputError: there is no such task.
    """
    return cached_base_model(name, get_task(name))
