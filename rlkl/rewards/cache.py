"""Scores that are kept: ``reward_cache/<name>.jsonl`` in the run folder, one line a score, by what it depends on."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlkl.rewards.arguments import Call, Group, State
from rlkl.rewards.result import Score
from rlkl.types import Image


class ScoreCache:
    """The scores of one reward. Failures are never kept."""

    def __init__(self, folder: Path, *, name: str, fingerprint: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.jsonl"
        self._fingerprint = fingerprint
        self._scores = dict(_read(path))
        self._file = path.open("a", encoding="utf-8")
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            self._file.write("\n")  # a crash tore the last line off

    def key(self, call: Call, texts: tuple[Any, ...]) -> str:
        """Hash of the function's source and settings, of all that the call hands to it, and of ``texts``: prompt and
        completion, which count whether it reads them or not."""
        seen = json.dumps([self._fingerprint, texts, call.arguments], sort_keys=True, default=_plain)
        return hashlib.blake2b(seen.encode(), digest_size=16).hexdigest()

    def get(self, key: str) -> tuple[Score, ...] | None:
        return self._scores.get(key)

    def put(self, key: str, scores: tuple[Score, ...]) -> None:
        self._scores[key] = scores
        self._file.write(json.dumps([key, [asdict(score) for score in scores]]) + "\n")

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _read(path: Path) -> list[tuple[str, tuple[Score, ...]]]:
    """Whole lines only."""
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


def _plain(value: Any) -> Any:
    """What JSON lacks, in a form that differs where the value does."""
    if isinstance(value, Image):
        return value.key
    if isinstance(value, Group | State):
        return asdict(value)
    return hashlib.blake2b(pickle.dumps(value, protocol=5), digest_size=16).hexdigest()
