"""Scores that are kept: ``reward_cache/<name>.jsonl`` in the run folder, one line a score, by what it depends on."""

from __future__ import annotations

import hashlib
import json
import pickle
import threading
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rlkl.rewards.function.arguments import Call, Group, State
from rlkl.rewards.function.result import Score
from rlkl.types import Image

_PLAIN = (type(None), bool, int, float, str)
"""Types that JSON distinguishes."""


class ScoreCache:
    """The scores of one reward. Failures are never kept."""

    def __init__(self, folder: Path, *, name: str, fingerprint: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.jsonl"
        self._fingerprint = fingerprint
        self._lock = threading.Lock()
        self._scores = dict(_read(path))
        self._file = path.open("a", encoding="utf-8")
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            self._file.write("\n")  # a crash tore the last line off

    def key(self, call: Call, texts: tuple[Any, ...]) -> str:
        """Hash the function's source and settings, the arguments of the call, and ``texts``.

        ``texts`` are prompt and completion, which count whether the function reads them or not.
        """
        seen = json.dumps(_canonical([self._fingerprint, texts, call.arguments]))
        return hashlib.blake2b(seen.encode(), digest_size=16).hexdigest()

    def get(self, key: str) -> tuple[Score, ...] | None:
        return self._scores.get(key)

    def put(self, key: str, scores: tuple[Score, ...]) -> None:
        line = json.dumps([key, [asdict(score) for score in scores]]) + "\n"
        with self._lock:  # an evaluation may score beside the training
            self._scores[key] = scores
            self._file.write(line)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _read(path: Path) -> list[tuple[str, tuple[Score, ...]]]:
    """Read the lines that are whole."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            key, scores = json.loads(line)
        except ValueError:
            continue
        found.append((key, tuple(map(_score, scores))))
    return found


def _score(values: Mapping[str, Any]) -> Score:
    return Score(
        value=values["value"],
        components=values["components"],
        tags=tuple(values["tags"]),
        token_values=tuple(values["token_values"]),
    )


def _canonical(value: Any) -> Any:
    """Return JSON of the value that is equal in every process for equal values, and differs for different ones.

    A container is a list that starts with its kind; what has no order of its own is sorted by the text of its parts,
    so keys of any types go together.
    """
    if value is None or isinstance(value, bool | int | float | str):
        plain = type(value) in _PLAIN
        return value if plain else [_kind(value), repr(value)]  # an enum, a numpy number, ...
    if isinstance(value, Image):
        return ["image", value.key]
    if isinstance(value, Group | State):
        fields_ = {field.name: getattr(value, field.name) for field in fields(value)}
        return [_kind(value), _canonical(fields_)]
    if isinstance(value, Mapping):
        pairs = [[_canonical(key), _canonical(part)] for key, part in value.items()]
        return ["dict", *sorted(pairs, key=json.dumps)]
    if isinstance(value, set | frozenset):
        return ["set", *sorted(map(_canonical, value), key=json.dumps)]
    if isinstance(value, list | tuple):
        return ["list" if isinstance(value, list) else "tuple", *map(_canonical, value)]
    return ["pickle", _kind(value), hashlib.blake2b(pickle.dumps(value, protocol=5), digest_size=16).hexdigest()]


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
