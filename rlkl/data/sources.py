"""Reading rows: JSON Lines, parquet, Hugging Face datasets, built-in worlds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkl.errors import DataError, InputError, did_you_mean
from rlkl.recipe import DataSection
from rlkl.tasks import task_name, task_rows

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, slots=True)
class UnreadableRow:
    """Replaces a row that could not be parsed, with the reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Rows:
    """Numbered rows of a source, and the columns that it is known to have.

    A row's number counts from 0: line number - 1 in a JSON Lines file, where blank lines are no rows.
    """

    numbered: Iterable[tuple[int, dict[str, Any] | UnreadableRow]]
    columns: frozenset[str]


def read_rows(section: DataSection) -> Rows:
    """Read all rows of ``section.source``.

    Raises:
        DataError: there is no such file, task, data set, configuration or split, or it cannot be read.
    """
    source = section.source
    task = task_name(source)
    if task is not None:
        try:
            return _of_dicts(task_rows(task))
        except InputError as error:
            raise DataError(f"data.source = '{source}': {error}") from error
    path = Path(source).expanduser()
    if path.suffix == ".jsonl":
        return _read_jsonl(_existing(path))
    if path.suffix == ".parquet":
        return _read_parquet(_existing(path))
    if path.is_file():
        kind = f"a {path.suffix} file" if path.suffix else "a file without a suffix"
        raise DataError(
            f"data.source = '{source}' is {kind}; use .jsonl or .parquet. "
            "pandas converts: pandas.read_csv(FILE).to_json('rows.jsonl', orient='records', lines=True)"
        )
    data = _load_folder(path, section) if path.is_dir() else _load_named(source, section)
    return Rows(enumerate(dict(row) for row in data), frozenset(data.column_names))


def is_local(section: DataSection) -> bool:
    """Return whether ``section.source`` is a built-in world, or a file or folder, rather than a name of a hub."""
    path = Path(section.source).expanduser()
    return task_name(section.source) is not None or path.suffix in (".jsonl", ".parquet") or path.exists()


def _of_dicts(rows: list[dict[str, Any]]) -> Rows:
    return Rows(list(enumerate(rows)), frozenset(column for row in rows for column in row))


def _existing(path: Path) -> Path:
    if path.is_file():
        return path
    if path.is_dir():
        raise DataError(f"data.source = '{path}' is a folder; name a file in it, or rename the folder without a suffix")
    if not path.parent.is_dir():
        raise DataError(f"data.source = '{path}': there is no folder '{path.parent}' (here: {Path.cwd()})")
    files = [file.name for file in path.parent.iterdir() if file.suffix in (".jsonl", ".parquet")]
    known = did_you_mean(path.name, files, folder=path.parent)
    if not files:
        known = f"there is no .jsonl or .parquet file in '{path.parent.absolute()}'"
    raise DataError(f"data.source = '{path}' does not exist; {known}")


def _read_jsonl(path: Path) -> Rows:
    try:
        numbered = list(_parse_lines(path))
    except OSError as error:
        raise DataError(
            f"data.source = '{path}' cannot be read ({error.strerror}); see that you may read it"
        ) from error
    columns = frozenset(column for _, row in numbered if isinstance(row, dict) for column in row)
    return Rows(numbered, columns)


def _parse_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | UnreadableRow]]:
    with path.open("rb") as lines:  # bytes: only a newline ends a line, and a bad encoding spoils one row, not the file
        for number, line in enumerate(lines):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                yield number, UnreadableRow(f"not JSON ({error})")
                continue
            yield number, row if isinstance(row, dict) else UnreadableRow(f"a JSON {type(row).__name__}, not an object")


def _read_parquet(path: Path) -> Rows:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"data.source = '{path}' cannot be read as parquet: {error}. Copy or write it again") from error
    return Rows(enumerate(table.to_pylist()), frozenset(table.column_names))


def _load_folder(path: Path, section: DataSection) -> Dataset:
    """Load a folder written by ``save_to_disk`` (one split or several), or a folder of data files."""
    if (path / "dataset_dict.json").is_file():
        splits = _from_disk(path)
        if section.split not in splits:
            raise DataError(
                f"data.split = '{section.split}' is not in data.source = '{path}'; "
                f"{did_you_mean(section.split, map(str, splits))}"
            )
        return splits[section.split]
    if (path / "state.json").is_file():
        return _from_disk(path)
    return _load_named(str(path), section)


def _from_disk(path: Path) -> Any:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        return datasets.load_from_disk(path)
    except (DatasetsError, OSError, ValueError, KeyError) as error:
        raise DataError(f"data.source = '{path}' is no complete folder of save_to_disk: {error!r}") from error


def _load_named(name: str, section: DataSection) -> Dataset:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        return datasets.load_dataset(name, section.subset, split=section.split)
    except (DatasetsError, OSError, ValueError) as error:
        raise DataError(
            f"data.source = '{name}' (data.subset {section.subset}, data.split {section.split}) is no .jsonl or "
            f".parquet file and cannot be loaded as a Hugging Face data set: {error}. {_way_out(name)}"
        ) from error


def _way_out(name: str) -> str:
    """Return what to do about a data set that cannot be loaded."""
    from huggingface_hub import constants

    if Path(name).is_dir():
        return "Name a .jsonl or .parquet file, or a folder that datasets' save_to_disk wrote"
    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE forbids to download it: unset it, or name a .jsonl or .parquet file"
    return "Check the name on huggingface.co/datasets, or name a .jsonl or .parquet file"
