"""The samples of runs for the page: whole groups, spread over runs and steps, with their numbers a token."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlkl.analysis.report.choosing import Group, choose_groups
from rlkl.analysis.report.numbers import short
from rlkl.analysis.report.pictures import PictureStore
from rlkl.errors import CheckpointError
from rlkl.tracking.records.pictures import picture_columns, picture_path
from rlkl.tracking.records.sample_schema import TOKEN_COLUMN

SAMPLES = 2000
TOKENS = 400_000
"""Tokens that a page holds at most; a browser takes seconds to open more."""
_FILE = re.compile(r"(step|eval)_(\d+)")
_LOG_RATIO = "log_ratio"
_IDS = "completion_ids"
_OF_GROUPS = ("prompt_id", "sample_index", _IDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleFile:
    """A sample file of a run. ``kind`` is ``step``, or ``eval`` for held-out samples."""

    run: int
    path: Path
    kind: str
    step: int


@dataclass(slots=True)
class Interned:
    """Different values, each kept once and mentioned by its number."""

    values: list[str] = field(default_factory=list)
    _numbers: dict[str, int] = field(default_factory=dict)

    def number(self, value: str) -> int:
        """Return the number of a value; add the value if it is new."""
        if value not in self._numbers:
            self._numbers[value] = len(self.values)
            self.values.append(value)
        return self._numbers[value]


def sample_files(run_dir: Path, run: int) -> list[SampleFile]:
    """Return the sample files of a run, by step."""
    found = []
    for path in sorted((run_dir / "samples").glob("*.parquet")):
        if match := _FILE.fullmatch(path.stem):
            found.append(SampleFile(run=run, path=path, kind=match[1], step=int(match[2])))
    return sorted(found, key=lambda file: (file.step, file.kind))


def _read(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the columns that a file has; None: all."""
    try:
        file = pq.ParquetFile(path)  # `read_table` would import pandas
        known = file.schema_arrow.names
        return file.read(columns=None if columns is None else [name for name in columns if name in known])
    except (pa.ArrowException, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as parquet ({error}); remove it, and the report leaves its samples out"
        ) from error


class SampleBook:
    """Collects samples for the page and gives each text, token and picture one place."""

    def __init__(self, pictures: PictureStore, *, samples: int = SAMPLES) -> None:
        self._pictures = pictures
        self._limit = samples
        self._tokens, self._prompts = Interned(), Interned()
        self._columns: dict[str, None] = {}
        self._rows: list[dict[str, Any]] = []
        self._groups = 0
        self._total = 0

    def add_files(self, files: Sequence[SampleFile], run_dirs: Sequence[Path]) -> None:
        """Add whole groups of all files: all of them, or as many as the limits of samples and tokens allow."""
        groups = [_groups(_read(file.path, _OF_GROUPS)) for file in files]
        self._total += sum(group.size for of_file in groups for group in of_file)
        chosen = choose_groups(groups, samples=self._limit, tokens=TOKENS)
        for file, of_file in zip(files, chosen, strict=True):
            table = _read(file.path) if of_file else None
            for group in of_file:
                assert table is not None
                self._add_group(file, run_dirs[file.run], table.slice(group.start, group.size))

    def add_suspects(self, run: int, suspects: Iterator[Mapping[str, Any]]) -> None:
        """Add the samples that the hacking watch kept: text and rewards, without numbers a token."""
        for suspect in suspects:
            self._groups += 1
            rewards = {key: short(value) for key, value in suspect.items() if key.startswith(("reward/", "monitor/"))}
            self._rows.append(
                {
                    "run": run,
                    "step": suspect["step"],
                    "kind": "suspect",
                    "group": self._groups,
                    "prompt": self._prompts.number(str(suspect.get("prompt", ""))),
                    "text": str(suspect.get("completion", "")),
                    "reward": short(suspect.get("reward")),
                    "rewards": rewards,
                    "finish": suspect.get("finish_reason"),
                    "index": suspect.get("sample_index"),
                    "signal": suspect.get("signal"),
                    "suspicion": short(suspect.get("suspicion")),
                }
            )

    def content(self) -> dict[str, Any]:
        """Return all that the page's sample browser needs."""
        return {
            "tokens": self._tokens.values,
            "prompts": self._prompts.values,
            "columns": list(self._columns),
            "pictures": self._pictures.sources,
            "rows": self._rows,
            "total": self._total,
        }

    def _add_group(self, file: SampleFile, run_dir: Path, table: pa.Table) -> None:
        rows = table.to_pylist()
        self._groups += 1
        numbers = [column.name for column in table.schema if column.type == TOKEN_COLUMN]
        pictures = picture_columns(table.column_names)
        for row in rows:
            found = {
                "run": file.run,
                "step": file.step,
                "kind": file.kind,
                "group": self._groups,
                "prompt": self._prompts.number(row["prompt"]),
                "text": row["completion"],
                "reward": short(row["reward"]),
                "rewards": {k: short(v) for k, v in row.items() if k.startswith(("reward/", "monitor/"))},
                "finish": row["finish_reason"],
                "index": row["sample_index"],
            }
            if row.get("tokens") is not None:
                found["ids"] = [self._tokens.number(text) for text in row["tokens"]]
                found["numbers"] = self._numbers(row, numbers)
            shown = {name: self._place(run_dir, row[name]) for name in pictures if row[name]}
            notes = {"pictures": shown, "tags": row.get("reward_tags"), "failed": row.get("reward_failed")}
            self._rows.append(found | {name: value for name, value in notes.items() if value})

    def _numbers(self, row: Mapping[str, Any], names: Sequence[str]) -> dict[str, list[float | None]]:
        """Return the numbers a token by column, and the log-ratio of policy and reference if both are known."""
        found = {name: row[name] for name in names if row[name] is not None}
        if "policy_logprobs" in found and "reference_logprobs" in found:
            pairs = zip(found["policy_logprobs"], found["reference_logprobs"], strict=True)
            found[_LOG_RATIO] = [policy - reference for policy, reference in pairs]
        self._columns |= dict.fromkeys(found)
        return {name: [short(value) for value in values] for name, values in found.items()}

    def _place(self, run_dir: Path, paths: Sequence[str]) -> list[int]:
        return [self._pictures.number(picture_path(run_dir, path)) for path in paths]


def _groups(table: pa.Table) -> list[Group]:
    """Return the groups of a file: samples of one prompt that follow one another, with rising indices."""
    keys = list(zip(table["prompt_id"].to_pylist(), table["sample_index"].to_pylist(), strict=True))
    starts = [
        at for at in range(len(keys)) if at == 0 or keys[at][0] != keys[at - 1][0] or keys[at][1] <= keys[at - 1][1]
    ]
    lengths = [0] * len(keys)
    if _IDS in table.column_names:
        lengths = [n or 0 for chunk in table[_IDS].chunks for n in chunk.value_lengths().to_pylist()]
    ends = [*starts[1:], len(keys)]
    return [Group(start, end, sum(lengths[start:end])) for start, end in zip(starts, ends, strict=True)]
