"""A case of bad input: how to make it, and the error that it must end with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.models import tiny_qwen2_5_vl, tiny_qwen3

HERE = "{here}"
"""Replaced by the folder that a case runs in."""

RECIPE = """\
run: {dir: run}
steps: 4
model: {path: base}
data: {source: rows.jsonl, max_prompt_tokens: 16}
rollout: {engine: hf, prompts_per_step: 2, samples_per_prompt: 2, max_new_tokens: 8}
rewards: [{function: 'my.py:right'}]
"""
REWARD = "def right(completion, answer):\n    return float(completion == answer)\n"


class Shelf:
    """Tiny models, each built when a case first asks for it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def model(self, name: str) -> Path:
        """Return the folder of a model: ``base``, ``wide`` (another vocabulary) or ``seeing`` (for pictures)."""
        folder = self._folder / name
        if not folder.exists():
            if name == "seeing":
                tiny_qwen2_5_vl(folder, seed=0)
            else:
                tiny_qwen3(folder, tied=False, seed=0, vocabulary={"base": 99, "wide": 120}[name])
        return folder


class Place:
    """The folder that a case runs in: a recipe that works, with its model, its rows and its reward."""

    def __init__(self, here: Path, shelf: Shelf, patch: pytest.MonkeyPatch) -> None:
        self.here, self.patch = here, patch
        self.held = ExitStack()
        """Closed when the case is over."""
        self._shelf = shelf
        self.model("base")
        self.write("r.yaml", RECIPE)
        self.write("my.py", REWARD)
        self.rows(*({"prompt": f"{n}+1=", "answer": str(n + 1)} for n in range(6)))

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file, and the folders above it."""
        path = self.here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    def rows(self, *rows: Mapping[str, Any], name: str = "rows.jsonl") -> None:
        self.write(name, "".join(json.dumps(row) + "\n" for row in rows))

    def recipe(self, old: str, new: str) -> None:
        """Replace text in the recipe."""
        text = (self.here / "r.yaml").read_text()
        assert text.count(old) == 1, old
        self.write("r.yaml", text.replace(old, new))

    def model(self, name: str, folder: str | None = None) -> None:
        """Copy a model of the shelf into ``folder``, by default its name."""
        shutil.copytree(self._shelf.model(name), self.here / (folder or name))

    def json(self, name: str, **changes: Any) -> None:
        """Change values of a JSON file; None removes one."""
        values = json.loads((self.here / name).read_text()) | changes
        self.write(name, json.dumps({key: value for key, value in values.items() if value is not None}))

    def remove(self, *names: str) -> None:
        for name in names:
            (self.here / name).unlink()


def _nothing(place: Place) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A mistake of a user and the answer of rlkl. ``{here}`` in a text stands for the folder that the case runs in."""

    wrong: str
    """In words, for the page."""
    run: str | tuple[str, ...] | Callable[[Place], object]
    """The words after ``rlkl``; or a call, for errors that only a started run or the Python API meets."""
    names: str
    """The part of the message that names the thing."""
    way: str
    """The later part that names the way out."""
    make: Callable[[Place], object] = _nothing
    """Makes the mistake in a place where all works."""
    exit: int = 2
    leaves: bool = False
    """Whether files may have changed: the command had begun."""


def with_rows(*rows: Mapping[str, Any]) -> Callable[[Place], object]:
    return lambda place: place.rows(*rows)


def with_file(name: str, content: str | bytes) -> Callable[[Place], object]:
    return lambda place: place.write(name, content)


def with_recipe(old: str, new: str) -> Callable[[Place], object]:
    return lambda place: place.recipe(old, new)
