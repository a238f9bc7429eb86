"""The Weights & Biases side of a run. wandb is imported only if the recipe uses it."""

from __future__ import annotations

import glob
import logging
import os
import shlex
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from rlkl.errors import EnvironmentProblem
from rlkl.recipe import Recipe
from rlkl.recipe.arm import arm_of, rule_of, variant_of
from rlkl.recipe.run_dir import EVAL_FILE, METRICS_FILE
from rlkl.tracking.records.pictures import picture_columns, side_by_side
from rlkl.tracking.records.reading import TOKEN_COLUMN, read_metrics, sample_files, sample_path
from rlkl.tracking.sinks.rows import COLUMNS
from rlkl.tracking.sinks.sink import AlertLevel
from rlkl.tracking.wandb.parts import last_step
from rlkl.types import SHARED_TOKEN_COLUMNS

_log = logging.getLogger(__name__)

START_TIMEOUT_S = 30.0
"""Seconds that W&B may take to answer when a run starts."""
FINISH_TIMEOUT_S = 60.0
"""Seconds that the last upload may take; what is left stays on disk for ``wandb sync``."""
SUMMARIES = {"reward/mean": "max,last", "monitor/": "max,last", "eval/": "max,last", "watch/": "max"}
"""Metrics, or families of them, and the values of a run that tables of runs show and sort by; else the last value.

The name of such a value is ``reward/mean.max`` or ``reward/mean.last``.
"""
TAG_LENGTH = 64
"""Characters of a tag that W&B takes."""


def new_run_id() -> str:
    """Make a W&B run id: once per run, kept in checkpoints, and the same after every resume."""
    return uuid.uuid4().hex[:12]


class WandbRun:
    """One W&B run, or one part of it after a resume.

    Online, a resumed run continues under its id. Offline, each start leaves a folder ``wandb/offline-run-*-<id>`` of
    its own; ``wandb sync`` given all of them (see `sync_hint`) uploads them in the order of their start as one run.

    The sample table accumulates: an incremental W&B table holds the rows of every logging, where tables logged anew
    under one key show the last only. W&B's workspace shows the latest 100 increments; the artifact and the parquet
    files hold all. After an offline resume the rows so far are read back from the parquet files and logged again as the
    first increment, because W&B cannot look them up.
    """

    def __init__(self, run_dir: Path, recipe: Recipe, *, run_id: str, first_step: int) -> None:
        settings = recipe.tracking
        self._run_dir = run_dir
        self._run_id = run_id
        recorded = last_step(run_dir, run_id) if first_step else None
        self._rows_kept = settings.samples_kept
        self._staging = _StagingFolder(run_dir)
        self._run = self._start(recipe)
        self._summarised: set[str] = set()
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        self._tables: dict[tuple[str, ...], tuple[str, Any]] = {}
        for finished, path in [] if self._run.resumed else sample_files(run_dir):
            if finished <= first_step:
                self._add_rows(path)
        if recorded is not None:
            self._add_lost(recorded + 1 if self._run.offline else self._run.step, first_step)

    def _add_lost(self, begin: int, end: int) -> None:
        """Log the steps from ``begin`` to ``end``, which a kill has cut off from what W&B holds.

        W&B takes in a row when the next one begins, and writes its file in blocks.
        """
        records = [record for name in (METRICS_FILE, EVAL_FILE) for record in read_metrics(self._run_dir / name)]
        for record in sorted(records, key=lambda record: record["step"]):
            if begin <= record["step"] <= end:
                metrics = {key: value for key, value in record.items() if key != "step"}
                self.log(int(record["step"]), metrics)

    def _start(self, recipe: Recipe) -> Any:
        import wandb
        from wandb.errors import CommError

        wandb.setup(wandb.Settings(silent=True))
        settings = recipe.tracking
        mode: Literal["online", "offline"] = "online" if settings.wandb == "online" else "offline"
        if mode == "online" and (problem := _online_problem()):
            _log.warning("tracking.wandb is online but %s: recording offline, to be uploaded later", problem)
            mode = "offline"
        try:
            return wandb.init(
                dir=self._run_dir,
                id=self._run_id,
                resume="allow",
                mode=mode,
                project=settings.project,
                entity=settings.entity,
                name=recipe.run.name,
                group=settings.group,
                job_type="train",
                tags=_tags(recipe),
                config=_config(recipe),
                reinit="create_new",
                settings=wandb.Settings(
                    console="off", silent=True, init_timeout=START_TIMEOUT_S, finish_timeout=FINISH_TIMEOUT_S
                ),
            )
        except CommError as error:
            raise EnvironmentProblem(
                f"W&B refused the run (tracking.project = {settings.project}, tracking.entity = {settings.entity}): "
                f"{error}. Correct them, or set tracking.wandb=offline and upload later"
            ) from error
        except Exception as error:
            raise EnvironmentProblem(
                f"W&B cannot be started ({type(error).__name__}: {error}). Set tracking.wandb=off to run without it"
            ) from error

    @property
    def run_id(self) -> str:
        """The id that W&B gave the run: another one than asked for inside a W&B sweep, which chooses it."""
        return self._run.id

    @property
    def folder(self) -> Path:
        """The folder that W&B writes this part of the run to."""
        return Path(self._run.settings.sync_dir)

    def log(self, finished: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step, under their own keys; ``step`` is the x axis of every curve."""
        for key in metrics.keys() - self._summarised:
            self._summarise(key)
        self._run.log({"step": finished, **metrics}, step=finished)

    def log_evaluation(self, finished: int, metrics: Mapping[str, float]) -> None:
        """Log an evaluation; W&B adds it to the metrics of the same step."""
        self.log(finished, metrics)

    def _summarise(self, key: str) -> None:
        """Define the values of a new metric in tables of runs.

        Each metric is defined by its full name: of two patterns that match, W&B takes any.
        """
        self._summarised.add(key)
        for name, summary in SUMMARIES.items():
            if key == name or (name.endswith("/") and key.startswith(name)):
                self._run.define_metric(key, step_metric="step", summary=summary)

    def alert(self, title: str, text: str, *, level: AlertLevel) -> None:
        """Send an alert: by mail or Slack, as the user has set it up at W&B; of an offline run after its upload."""
        self._run.alert(title=title, text=text, level=level)

    def flush(self) -> None:
        """Do nothing: what W&B has not written when the process is killed, a resume logs again."""

    def log_samples(self, finished: int) -> None:
        """Add the first ``tracking.samples_kept`` rollouts of a step's sample file to the table ``samples``."""
        key, table = self._add_rows(sample_path(self._run_dir, finished))
        self._run.log({key: table}, step=finished)
        table.data[:] = [_LOGGED] * len(table.data)

    def _add_rows(self, path: Path) -> tuple[str, Any]:
        """Add the file's first rows: `COLUMNS`, pictures, and numbers a token.

        Return the table that they went to and its key. A table has one set of columns. When a later step brings new
        ones, ``samples_2`` takes its rows and those of the steps after it.
        """
        schema = pq.read_schema(path)
        pictures = picture_columns(schema.names)
        left_out = ("logprobs", *SHARED_TOKEN_COLUMNS)  # a cell with three numbers a token hides the text beside it
        tokens = [f.name for f in schema if f.type == TOKEN_COLUMN and f.name not in left_out]
        columns = (*COLUMNS, *pictures, *tokens)
        if columns not in self._tables:
            key = f"samples_{len(self._tables) + 1}" if self._tables else "samples"
            self._tables[columns] = key, _new_table(columns)
        for row in pq.read_table(path, columns=list(columns)).slice(0, self._rows_kept).to_pylist():
            row |= {name: self._picture(row[name]) for name in pictures}
            row |= {name: " ".join(f"{x:.3g}" for x in row[name] or ()) for name in tokens}
            self._tables[columns][1].add_data(*(row[name] for name in columns))
        return self._tables[columns]

    def _picture(self, paths: Sequence[str] | None) -> Any:
        import wandb

        picture = side_by_side(self._run_dir, paths or ())
        return None if picture is None else wandb.Image(picture)

    def finish(self, *, failed: bool = False) -> None:
        """Close the run; wait at most `FINISH_TIMEOUT_S` for uploads."""
        self._run.finish(exit_code=1 if failed else 0)
        self._staging.restore()

    def sync_hint(self) -> str:
        """Return the address of the run, or the command that uploads it."""
        if not self._run.offline:
            return self._run.url
        parts = glob.escape(str(self._run_dir / "wandb"))
        return f"wandb sync {shlex.quote(parts)}/offline-run-*-{self.run_id}"

    def places(self) -> Mapping[str, Path | str]:
        """Return the folder and the address; of an online run also the command that makes a dashboard."""
        places: dict[str, Path | str] = {"W&B folder": self.folder, "W&B": self.sync_hint()}
        if not self._run.offline:
            places["dashboard by"] = f"rlkl dashboard {self._run.entity}/{self._run.project}"
        return places


def _tags(recipe: Recipe) -> list[str]:
    """Return rule, variant, model and the recipe's own tags."""
    model = Path(recipe.model.path).name if Path(recipe.model.path).exists() else recipe.model.path
    tags = (rule_of(recipe), variant_of(recipe), model, *recipe.tracking.tags)
    return list(dict.fromkeys(tag[:TAG_LENGTH] for tag in tags if tag))


def _config(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe, with rule, variant and arm also at the top: W&B groups runs by names without a dot."""
    flat = {"rule": rule_of(recipe), "variant": variant_of(recipe), "arm": arm_of(recipe)}
    return {**recipe.model_dump(mode="json"), **flat}


def _online_problem() -> str | None:
    """Return the reason why W&B cannot be used online from here, or None. Takes at most about ten seconds."""
    import wandb
    from wandb.errors import CommError

    try:
        if wandb.login(prompt=False):
            return None
    except CommError as error:
        return str(error)
    return "there is no W&B key (neither WANDB_API_KEY nor a netrc entry; `wandb login` makes one)"


_LOGGED: list[Any] = []
"""Stands in a table for a row that is logged. W&B counts such rows, and does not read them again."""


def _new_table(columns: Sequence[str]) -> Any:
    import wandb

    return wandb.Table(columns=list(columns), log_mode="INCREMENTAL")


class _StagingFolder:
    """Has W&B keep the files of tables inside the run folder until they are uploaded.

    Its default is the home directory, which a container or a cluster job loses together with the tables.
    """

    VARIABLE = "WANDB_DATA_DIR"

    def __init__(self, run_dir: Path) -> None:
        self._set = self.VARIABLE not in os.environ
        if self._set:
            os.environ[self.VARIABLE] = str(run_dir / "wandb" / "data")

    def restore(self) -> None:
        if self._set:
            os.environ.pop(self.VARIABLE, None)
