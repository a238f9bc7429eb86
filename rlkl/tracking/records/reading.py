"""The local record of a run: ``metrics.jsonl`` and ``samples/step_000010.parquet``.

Records and files have step numbers (`rlkl.types.step_number`). A run resumed at step index ``first_step`` keeps those
of the steps with a lower index; the others go.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa
import pyarrow.parquet as pq

from rlkl.errors import CheckpointError, LearnerError
from rlkl.recipe.run_dir import numbered
from rlkl.tracking.records.pictures import PictureColumns
from rlkl.tracking.records.sample_schema import TOKEN_COLUMN, fitted, merged_schema
from rlkl.tracking.records.token_texts import TokenTexts
from rlkl.types import RolloutGroup, step_index

TokenColumns = Mapping[str, Sequence[Sequence[float] | None]]
"""Numbers for each response token by column name, one entry a rollout, None where the rollout was not trained on."""


class MetricsFile:
    """``metrics.jsonl``: one JSON object a finished step, ``step`` first, the rest in the order given.

    Numbers are written by ``repr``, which is exact, so runs with equal numbers have equal bytes.
    """

    def __init__(self, path: Path, *, first_step: int) -> None:
        """Open the file for a run that goes on at step index ``first_step``, cutting off later records.

        Raises CheckpointError when a record other than the last is damaged.
        """
        self.kept = [record for record in read_metrics(path) if step_index(int(record["step"])) < first_step]
        """The records of earlier steps."""
        _write_atomically(path, "".join(_line(record) for record in self.kept).encode())
        self._file = path.open("a", encoding="utf-8")

    def append(self, record: Mapping[str, float]) -> None:
        """Write one record and hand it to the operating system.

        Raises LearnerError for NaN and infinity: JSON has no such numbers, and a curve would silently lose the point.
        """
        bad = [f"{key} = {value}" for key, value in record.items() if not math.isfinite(value)]
        if bad:
            raise LearnerError(
                f"step {record['step']} produced {', '.join(bad)}, expected finite numbers. The records and "
                "samples of the steps before it show where it began; a lower learner.lr is the usual cure"
            )
        self._file.write(_line(record))
        self._file.flush()

    def sync(self) -> None:
        """Return once everything appended is on disk."""
        if not self._file.closed:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self.sync()
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read the records of a ``metrics.jsonl``; none without a file. A last line that a crash tore off is left out.

    Raises CheckpointError when any other line is damaged.
    """
    if not path.exists():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")  # the last newline is followed by nothing, or by half a record
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise CheckpointError(
                f"{path}: line {number} is not JSON ({error}); repair or remove the line, then resume again"
            ) from error
    return records


def sample_path(run_dir: Path, finished: int) -> Path:
    """Return the file with the samples of a step, by the number of finished steps."""
    return run_dir / "samples" / f"step_{finished:06d}.parquet"


def write_samples(
    path: Path,
    finished: int,
    groups: Sequence[RolloutGroup],
    token_columns: TokenColumns = MappingProxyType({}),
    pictures: PictureColumns = MappingProxyType({}),
    tokens: TokenTexts | None = None,
) -> None:
    """Write the samples of a step; see `sample_table` and `write_sample_table`."""
    write_sample_table(path, sample_table(finished, groups, token_columns, pictures, tokens))


def write_sample_table(path: Path, table: pa.Table) -> None:
    """Write a file of a run's samples.

    All sample files of a run have one schema, so that readers can take the folder as one table: a column that this step
    lacks is null, and one that is new is added to the earlier files.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    earlier = [other for other in _sample_paths(path.parent) if other != path]
    schema = merged_schema([table.schema, *(pq.read_schema(other) for other in earlier[-1:])])
    if earlier and schema != pq.read_schema(earlier[-1]):
        _rewrite(earlier, schema)
    write_table(path, fitted(table, schema))


def sample_table(
    finished: int,
    groups: Sequence[RolloutGroup],
    token_columns: TokenColumns = MappingProxyType({}),
    pictures: PictureColumns = MappingProxyType({}),
    tokens: TokenTexts | None = None,
) -> pa.Table:
    """Return one row a rollout, groups in order. ``logprobs`` is null for stored answers.

    ``tokens`` decodes the column ``tokens``, the text of each token; without it there is no such column.
    """
    pairs = [(group.prompt, rollout) for group in groups for rollout in group.rollouts]
    texts = {} if tokens is None else {"tokens": [tokens.of(r.completion.token_ids) for _, r in pairs]}
    columns: dict[str, pa.Array] = {
        "step": pa.array([finished] * len(pairs), pa.int64()),
        "prompt_id": pa.array([prompt.id for prompt, _ in pairs], pa.string()),
        "prompt": pa.array([_utf8(prompt.text) for prompt, _ in pairs], pa.string()),
        "completion": pa.array([_utf8(rollout.completion.text) for _, rollout in pairs], pa.string()),
        "completion_ids": pa.array([rollout.completion.token_ids for _, rollout in pairs], pa.list_(pa.int64())),
        **{name: pa.array(values, pa.list_(pa.string())) for name, values in texts.items()},
        "logprobs": pa.array([rollout.completion.logprobs for _, rollout in pairs], TOKEN_COLUMN),
        "finish_reason": pa.array([rollout.completion.finish_reason for _, rollout in pairs], pa.string()),
        "reward": pa.array([rollout.reward if rollout.scored else None for _, rollout in pairs], pa.float64()),
    }
    for name in sorted({name for _, rollout in pairs for name in rollout.components}):
        values = [rollout.components.get(name) for _, rollout in pairs]  # a reward may abstain: null
        columns[f"reward/{name}"] = pa.array(values, pa.float64())
    for name in sorted({name for _, rollout in pairs for name in rollout.monitors}):
        values = [rollout.monitors.get(name) for _, rollout in pairs]
        columns[f"monitor/{name}"] = pa.array(values, pa.float64())
    for name in ("tags", "failed"):
        columns[f"reward_{name}"] = pa.array([getattr(r, name) for _, r in pairs], pa.list_(pa.string()))
    columns["sample_index"] = pa.array([rollout.sample_index for _, rollout in pairs], pa.int64())
    columns["weights_version"] = pa.array([rollout.weights_version for _, rollout in pairs], pa.int64())
    columns["versions"] = pa.array([rollout.token_versions for _, rollout in pairs], pa.list_(pa.int64()))
    for name, values in token_columns.items():
        assert len(values) == len(pairs), f"one entry of {name} per rollout"
        columns[name] = pa.array(values, TOKEN_COLUMN)
    for name, paths in pictures.items():
        columns[name] = pa.array(paths, pa.list_(pa.string()))
    return pa.table(columns)


def unify_samples(run_dir: Path) -> None:
    """Bring all sample files to one schema, after a crash in between or if an earlier version wrote them."""
    files = _sample_paths(run_dir / "samples")
    if files:
        _rewrite(files, merged_schema([pq.read_schema(path) for path in files]))


def _rewrite(files: Sequence[Path], schema: pa.Schema) -> None:
    for path in files:
        if pq.read_schema(path) != schema:
            write_table(path, fitted(pq.read_table(path), schema))


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table as parquet: whole, or not at all."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    _write_atomically(path, buffer.getvalue())


def _sample_paths(folder: Path) -> list[Path]:
    return sorted([*folder.glob("step_*.parquet"), *folder.glob("eval_*.parquet")])


def eval_sample_path(run_dir: Path, finished: int) -> Path:
    """Return the file with the samples of an evaluation, by the number of finished steps."""
    return run_dir / "samples" / f"eval_{finished:06d}.parquet"


def eval_sample_files(run_dir: Path) -> Iterator[tuple[int, Path]]:
    """List finished steps and path of the samples of each evaluation, oldest first."""
    yield from numbered(run_dir / "samples", "eval_*.parquet")


def sample_files(run_dir: Path) -> Iterator[tuple[int, Path]]:
    """List finished steps and path of the samples of each training step that has some, oldest first."""
    yield from numbered(run_dir / "samples", "step_*.parquet")


def drop_later_samples(run_dir: Path, first_step: int) -> None:
    """Remove the sample files of what a run will do again if it is resumed at step index ``first_step``."""
    for finished, path in sample_files(run_dir):
        if step_index(finished) >= first_step:
            path.unlink()
    for finished, path in eval_sample_files(run_dir):
        if step_index(finished) >= first_step or first_step == 0:
            path.unlink()


def _line(record: Mapping[str, float]) -> str:
    ordered = {"step": record["step"], **record}
    return json.dumps(ordered, allow_nan=False) + "\n"


def _utf8(text: str) -> str:
    """Replace lone surrogates, which a byte-level decoder can leave and a parquet string cannot hold."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _write_atomically(path: Path, content: bytes | pa.Buffer) -> None:
    """Write a file so that it has its old content or the new one, whenever the machine stops."""
    aside = path.with_name(f".{path.name}.tmp")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError:  # a full disk gets back what the half file took
        aside.unlink(missing_ok=True)
        raise
