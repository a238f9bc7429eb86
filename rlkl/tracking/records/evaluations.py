"""The evaluations of a run: ``eval.jsonl``, and their samples in ``samples/eval_000020.parquet``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa

from rlkl.recipe.run_dir import EVAL_FILE
from rlkl.tracking.records.pictures import PictureColumns, save_pictures
from rlkl.tracking.records.reading import MetricsFile, eval_sample_path, sample_table, write_sample_table
from rlkl.tracking.records.token_texts import TokenTexts
from rlkl.types import RolloutGroup

SAMPLED, GREEDY = "sampled", "greedy"
"""Values of the column ``evaluation``; null in the samples of training."""


class EvaluationRecords:
    """Appends evaluations, and keeps those before a resume. A run without any has no file."""

    def __init__(self, run_dir: Path, *, first_step: int, tokens: TokenTexts | None = None) -> None:
        """Read the file, and cut off the evaluations after step ``first_step``; of a new run, all.

        ``tokens`` decodes the tokens of the samples.

        Raises `CheckpointError` if a record other than the last is damaged.
        """
        self._run_dir = run_dir
        self._first_step = first_step
        self._tokens = tokens
        self._file: MetricsFile | None = None
        self.records: list[Mapping[str, float]] = []
        path = run_dir / EVAL_FILE
        if first_step == 0:  # left by a run that came to no step
            path.unlink(missing_ok=True)
        if path.exists():
            self._open()

    def has(self, step: int) -> bool:
        """Return whether the weights after ``step`` steps have been evaluated."""
        return any(record["step"] == step for record in self.records)

    def add(self, record: Mapping[str, float]) -> None:
        """Append a record, which holds its ``step``; it is on disk when this returns."""
        file = self._file or self._open()
        file.append(record)
        file.sync()
        self.records.append(record)

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._file is not None:
            self._file.close()

    def write_samples(
        self, step: int, sampled: Sequence[RolloutGroup], greedy: Sequence[RolloutGroup], *, pictures_kept: int
    ) -> None:
        """Write all completions of an evaluation. The file has the columns of the run's other sample files."""
        pictures = save_pictures(self._run_dir, [*sampled, *greedy], {}, kept=pictures_kept)
        table = evaluation_table(step, sampled, greedy, pictures, self._tokens)
        write_sample_table(eval_sample_path(self._run_dir, step), table)

    def _open(self) -> MetricsFile:
        self._file = MetricsFile(self._run_dir / EVAL_FILE, first_step=self._first_step)
        self.records[:] = self._file.kept  # in place: the console has the list
        return self._file


def evaluation_table(
    step: int,
    sampled: Sequence[RolloutGroup],
    greedy: Sequence[RolloutGroup],
    pictures: PictureColumns = MappingProxyType({}),
    tokens: TokenTexts | None = None,
) -> pa.Table:
    """Return one row a completion, with the column ``evaluation``; the other columns are those of `sample_table`."""
    parts = ((sampled, SAMPLED), (greedy, GREEDY))
    kinds = [kind for groups, kind in parts for group in groups for _ in group.rollouts]
    table = sample_table(step, [*sampled, *greedy], pictures=pictures, tokens=tokens)
    return table.append_column("evaluation", pa.array(kinds, pa.string()))
