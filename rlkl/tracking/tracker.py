"""Ties together what records and shows a run. Step indices and step numbers: see `rlkl.types.step_number`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rlkl.recipe import Recipe
from rlkl.recipe.run_dir import has_checkpoint
from rlkl.tracking.console.console import open_console, print_summary
from rlkl.tracking.console.view import RunState
from rlkl.tracking.hacking.watch import HackingWatch, Sighting, warn
from rlkl.tracking.metrics.registry import check_known
from rlkl.tracking.records.evaluations import EvaluationRecords
from rlkl.tracking.records.pictures import save_pictures
from rlkl.tracking.records.reading import (
    MetricsFile,
    TokenColumns,
    drop_later_samples,
    sample_path,
    unify_samples,
    write_samples,
)
from rlkl.tracking.records.resumes import note_resume
from rlkl.tracking.records.suspicious import drop_later_suspects, suspects_path, write_suspects
from rlkl.tracking.records.token_texts import TokenTexts
from rlkl.tracking.records.writer import BackgroundWriter
from rlkl.tracking.sinks.opening import open_sinks
from rlkl.tracking.sinks.sink import AlertLevel
from rlkl.types import Image, RolloutGroup, step_number

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """The end of a run without an error."""

    interrupted: bool
    """Stopped by the user before the last step; its state is saved."""
    policy_dir: Path | None
    """The exported policy, if one was written."""
    best: str | None = None
    """A sentence on the best policy, if one is kept."""


class Tracker:
    """``metrics.jsonl``, sample files, sinks (W&B and others) and the console of one run.

    Create it before the slow parts of a start, so that `note` can say what is being waited for; call `log` once a
    training step, `flush` before a checkpoint is declared complete, and `finish` or `fail` at the end.
    """

    def __init__(
        self, run_dir: Path, recipe: Recipe, *, run_id: str | None, first_step: int, tokenizer: Any = None
    ) -> None:
        """Open the records of a run. ``run_id`` is None for a new run; a resumed one passes what its checkpoint kept.

        ``first_step`` is the index of the step that comes next: what ``run_dir`` holds of it and of later ones is
        removed. With a ``tokenizer``, sample files have the text of each token. Raises CheckpointError for a damaged
        ``metrics.jsonl``, EnvironmentProblem when W&B refuses the run. ``run_id`` is afterwards the id that W&B gave
        the run.
        """
        self._run_dir = run_dir
        self._recipe = recipe
        self._tokens = None if tokenizer is None else TokenTexts(tokenizer)
        self._next_step = first_step
        run_dir.mkdir(parents=True, exist_ok=True)
        drop_later_samples(run_dir, first_step)
        unify_samples(run_dir)
        drop_later_suspects(run_dir, first_step)
        if first_step:
            note_resume(run_dir, first_step)
        with ExitStack() as opened:
            self._metrics = MetricsFile(run_dir / "metrics.jsonl", first_step=first_step)
            opened.callback(self._metrics.close)
            self._evaluations = EvaluationRecords(run_dir, first_step=first_step, tokens=self._tokens)
            opened.callback(self._evaluations.close)
            self._state = RunState(
                recipe=recipe,
                records=[*self._metrics.kept],
                evaluations=self._evaluations.records,
                first_step=first_step,
            )
            self._console = open_console(recipe.tracking.console, self._state)
            opened.callback(self._console.close)
            if recipe.tracking.wandb != "off":
                self.note("starting W&B")
            self._sinks, self.run_id = open_sinks(run_dir, recipe, run_id=run_id, first_step=first_step)
            opened.pop_all()
        watched = recipe.tracking.hacking_watch and not recipe.data.has_pairs  # of stored pairs nothing drifts
        self._watch = HackingWatch(recipe, self._metrics.kept) if watched else None
        self._writer = BackgroundWriter()

    @property
    def records(self) -> Sequence[Mapping[str, float]]:
        """The records of all steps so far, of a resumed run from its beginning on."""
        return self._state.records

    def note(self, text: str) -> None:
        """Show in one line what the run is doing, until the next step is logged."""
        self._state.note = text
        self._console.note()

    def samples_due(self, step: int) -> bool:
        """Return whether the training step with index ``step`` leaves a sample file."""
        finished = step_number(step)
        return step == 0 or finished % self._recipe.tracking.samples_every == 0 or finished == self._recipe.steps

    def log(
        self,
        step: int,
        metrics: Mapping[str, float],
        groups: Sequence[RolloutGroup],
        token_columns: TokenColumns | None = None,
        views: Mapping[str, Mapping[int, Sequence[Image]]] | None = None,
    ) -> None:
        """Record the training step with index ``step``; samples at the first, each ``samples_every``-th and the last.

        ``token_columns``, one entry a rollout in the order of ``groups``, go to the sample file, and so do the
        pictures; ``views`` are those that the rule changed, by view and number of the group.
        Raises LearnerError for NaN or infinity, AssertionError for a metric without a definition, and
        what went wrong in writing an earlier step. Errors of W&B and other sinks are warned of and never raised.
        """
        assert step == self._next_step, f"step {step} logged where step {self._next_step} is due"
        finished = step_number(step)
        sighting = self._look(metrics, groups)
        metrics = {**metrics, **sighting.metrics}
        check_known(metrics)
        self._next_step = finished
        record = {"step": finished, **metrics}
        self._metrics.append(record)
        self._state.update(record, groups)
        for sink in self._sinks:
            sink.log(finished, metrics)
        self._report(finished, sighting)
        due = self.samples_due(step)
        if due:
            job = partial(self._write_samples, finished, groups, token_columns or {}, views or {})
            written = self._writer.submit(job)
            for sink in self._sinks:
                sink.log_samples(finished, written)
        self._console.step(with_samples=due)

    @property
    def evaluations(self) -> Sequence[Mapping[str, float]]:
        """The records of all evaluations so far, of a resumed run from its beginning on."""
        return self._evaluations.records

    def has_evaluated(self, step: int) -> bool:
        """Return whether the weights after ``step`` steps have been evaluated."""
        return self._evaluations.has(step)

    def evaluated(
        self,
        step: int,
        metrics: Mapping[str, float],
        sampled: Sequence[RolloutGroup],
        greedy: Sequence[RolloutGroup],
    ) -> None:
        """Record an evaluation of the weights after ``step`` steps, first its samples. All is on disk then.

        Raises what `log` does.
        """
        check_known(metrics)
        kept = self._recipe.tracking.samples_kept
        self._writer.submit(partial(self._evaluations.write_samples, step, sampled, greedy, pictures_kept=kept))
        self._writer.flush()
        self._evaluations.add({"step": step, **metrics})
        for sink in self._sinks:
            sink.log_evaluation(step, metrics)
        self._state.note = ""
        self._console.evaluated()

    def _write_samples(
        self,
        finished: int,
        groups: Sequence[RolloutGroup],
        token_columns: TokenColumns,
        views: Mapping[str, Mapping[int, Sequence[Image]]],
    ) -> None:
        pictures = save_pictures(self._run_dir, groups, views, kept=self._recipe.tracking.samples_kept)
        path = sample_path(self._run_dir, finished)
        write_samples(path, finished, groups, token_columns, pictures, self._tokens)

    def _look(self, metrics: Mapping[str, float], groups: Sequence[RolloutGroup]) -> Sighting:
        """Ask the hacking watch about a step."""
        if self._watch is None or not groups:
            return Sighting(metrics={}, set_in={}, suspects={})
        return self._watch.look(self._state.records, metrics, groups)

    def _report(self, finished: int, sighting: Sighting) -> None:
        """Warn of signals that have set in and keep their suspects. The step's record must have been written."""
        if sighting.set_in:
            path = suspects_path(self._run_dir, finished)
            self._writer.submit(partial(write_suspects, path, sighting.suspects))
            for name, text in warn(sighting, finished, str(path)).items():
                self._alert(f"hacking watch: {name}", text, level="WARN")

    def _alert(self, title: str, text: str, *, level: AlertLevel) -> None:
        for sink in self._sinks:
            sink.alert(title, text, level=level)

    def flush(self) -> None:
        """Return once every step logged so far is on disk; raises what went wrong in writing, but no sink's errors."""
        self._writer.flush()
        self._metrics.sync()
        for sink in self._sinks:
            sink.settle()

    def drain(self) -> list[BaseException]:
        """Wait until what can be written is written; log the errors of the rest, and return them."""
        errors = self._writer.drain()
        for error in errors:
            _log.error("records of the run are incomplete: %s: %s", type(error).__name__, error)
        return errors

    def finish(self, summary: RunSummary) -> None:
        """Close everything and print what was reached and where it is."""
        errors = self._close(failed=False)
        places: dict[str, Path | str] = {}
        if summary.policy_dir is not None:
            places["policy"] = summary.policy_dir
        if summary.best is not None:
            places["best policy"] = summary.best
        print_summary(
            "interrupted after" if summary.interrupted else "finished",
            places | self._places(resumable=summary.interrupted),
            self._state,
        )
        if errors:
            raise errors[0]

    def fail(self, error: BaseException) -> None:
        """Close everything after ``error``, mark the run as failed in all sinks, and print where its traces are."""
        if not isinstance(error, KeyboardInterrupt):
            self._alert(f"run {self._recipe.run.name} failed", f"{type(error).__name__}: {error}", level="ERROR")
        self._close(failed=True)
        places = self._places(resumable=has_checkpoint(self._run_dir))
        print_summary(f"{type(error).__name__} after", places, self._state)

    def _close(self, *, failed: bool) -> list[BaseException]:
        self.note("writing the last records")
        errors = self.drain()
        for sink in self._sinks:
            sink.finish(failed=failed)
        self.note("")
        self._writer.close()
        self._metrics.close()
        self._evaluations.close()
        self._console.close()
        return errors

    def _places(self, *, resumable: bool) -> dict[str, Path | str]:
        """Return the files and folders that are there, and commands that work, by their names in the summary."""
        places: dict[str, Path | str] = {
            "run folder": self._run_dir,
            "metrics": self._run_dir / "metrics.jsonl",
            "samples": self._run_dir / "samples",
        }
        for sink in self._sinks:
            places |= sink.places()
        places = {name: place for name, place in places.items() if not isinstance(place, Path) or place.exists()}
        if resumable:
            places["go on with"] = f"rlkl train --resume {self._run_dir}"
        return places
