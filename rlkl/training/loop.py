"""The loop: collect, learn, publish, record."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rlkl.errors import RlklError
from rlkl.system.interrupt import StopRequest
from rlkl.tracking.alarms import RULE_ALARMS
from rlkl.tracking.tracker import RunSummary
from rlkl.training.checkpoint import LoopState
from rlkl.training.clock import Clock
from rlkl.training.parts import Parts
from rlkl.training.pending import read_pending
from rlkl.training.result import RunResult
from rlkl.training.selection import token_columns
from rlkl.training.waiting import START
from rlkl.types import Learned, Selection, step_number

logger = logging.getLogger(__name__)

_HIDDEN = (RlklError, OSError, RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AssertionError)
"""Errors of saving and recording that do not replace the error that ended the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trained:
    """A step that is in the weights and not in the records."""

    selection: Selection
    learned: Learned
    clock: Clock


@dataclass(slots=True, kw_only=True)
class Trainer(Parts):
    """A run whose parts are ready. ``step`` is the number of finished steps, and the index of the next one.

    The learner decides which step is the last finished one: its change is in the weights. An error at any point of a
    step leaves a checkpoint of that step.
    """

    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    stop: StopRequest = field(default_factory=StopRequest)
    _unrecorded: _Trained | None = None

    def run(self) -> RunResult:
        """Train to the recipe's last step, or to the end of the step in which a stop is asked for.

        Before the first step a signal raises KeyboardInterrupt.
        """
        with self.stop as stop:
            try:
                self._train(stop)
                stopped_by = stop.signal_number if self.step < self.recipe.steps else None
                policy_dir = self.saver.export() if stopped_by is None else None
            except (Exception, SystemExit) as error:
                problem = self._rescue()
                error.add_note(self.saver.advice(self.step, error, problem))
                raise
            finally:
                self.schedule.close()
        summary = RunSummary(interrupted=stopped_by is not None, policy_dir=policy_dir, best=self.best.summary())
        self.tracker.finish(summary)
        status, exit_code = ("done", 0) if stopped_by is None else ("interrupted", 128 + stopped_by)
        return RunResult(run_dir=self.run_dir, status=status, exit_code=exit_code, metrics=self.metrics)

    def resume(self, checkpoint: Path, state: LoopState) -> None:
        """Continue from a checkpoint."""
        self.hands.learner.restore(checkpoint)
        self.step = state.step
        self.schedule.resume(read_pending(checkpoint, self.source, position=state.position), state.step)
        self.watch.resume(self.update.alarms(self.tracker.records))
        records = self.tracker.evaluations if self.best.is_of_evaluations else self.tracker.records
        self.best.resume(state.step, records)

    def _train(self, stop: StopRequest) -> None:
        with stop.at_once():
            if self.recipe.rollout.workers:
                self.waiting.enter(START)
            self.publisher.publish_first(self.step)
            self.evaluator.evaluate(self.step)
        while self.step < self.recipe.steps and stop.signal_number is None:
            self._train_step()
            if due := self.step % self.recipe.checkpoint.every == 0 or self.step == self.recipe.steps:
                self.saver.save_once(self.step, self.schedule.pending())
            self.best.trained(self.step, self.metrics, self.schedule.pending, saved=due)
            if stop.signal_number is None or self.step == self.recipe.steps:
                self.evaluator.evaluate(self.step)
        self.saver.save_once(self.step, self.schedule.pending())

    def _train_step(self) -> None:
        clock = Clock(entered=self.waiting.enter, sampler=self.hands.sampler)
        selection = self.schedule.collect(self.step, clock)
        probes = self.publisher.probes(selection.groups)
        before, due = self.publisher.before_step(probes), self.tracker.samples_due(self.step)
        with clock.time("learner"):
            learned = self.faults.learn(selection, step=self.step, probes=before, samples=due)
        trained = self._unrecorded = _Trained(selection=selection, learned=learned, clock=clock)
        self.schedule.before_publish(clock)
        with clock.time("publish"):
            synced = self.publisher.publish(step_number(self.step), probes)
        self.schedule.published(step_number(self.step))
        self._record(trained, synced)
        self._finish_step()
        self.watch.gradient(self.metrics)

    def _record(self, trained: _Trained, synced: Mapping[str, float]) -> None:
        """Record a step. ``synced``: the metrics of its publish."""
        self._unrecorded = None  # a record that fails is not tried again
        selection, learned = trained.selection, trained.learned
        timed = trained.clock.metrics(rollouts=selection.rollout_count, tokens=selection.token_count)
        self.metrics = {**selection.metrics, **learned.metrics, **synced, **timed}
        alarms = self.update.alarms([*self.tracker.records, self.metrics])
        self.metrics[RULE_ALARMS] = float(len(alarms))
        columns, pictures = token_columns(selection, learned.token_columns), learned.pictures
        self.tracker.log(self.step, self.metrics, selection.groups, columns, pictures)
        self.watch.alarms(alarms)

    def _finish_step(self) -> None:
        self.step = step_number(self.step)
        self.schedule.trained()

    def _rescue(self) -> BaseException | None:
        """Save the last step that the learner finished, after an error; return the error that this ended with."""
        try:
            if self.hands.learner.finished_steps() > self.step:  # the step is in the weights
                self._record_unpublished()
                self._finish_step()
            self.schedule.take_back()
            self.tracker.drain()
            self.saver.save_once(self.step, self.schedule.pending())
        except _HIDDEN as error:
            return error
        return None

    def _record_unpublished(self) -> None:
        """Record a step whose publish has failed, without the metrics of the publish."""
        if self._unrecorded is not None:
            try:
                self._record(self._unrecorded, {})
            except _HIDDEN as error:
                logger.warning("step %d is saved, but its record is not complete: %s", step_number(self.step), error)
