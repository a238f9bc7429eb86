"""The loop: collect, learn, publish, record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlkl.data.prompts import PromptSource
from rlkl.errors import RlklError
from rlkl.recipe import Recipe
from rlkl.rewards import RewardSet
from rlkl.system.interrupt import StopRequest
from rlkl.tracking.alarms import RULE_ALARMS
from rlkl.tracking.tracker import RunSummary, Tracker
from rlkl.training.checkpoint import LoopState
from rlkl.training.clock import Clock
from rlkl.training.collect import build_collector
from rlkl.training.hands import Hands
from rlkl.training.pending import read_pending
from rlkl.training.publish import Publisher
from rlkl.training.result import RunResult
from rlkl.training.saving import Saver
from rlkl.training.schedules import Schedule, build_schedule
from rlkl.training.selection import Selector, token_columns
from rlkl.training.waiting import START, Waiting
from rlkl.training.watch import Watch
from rlkl.types import step_number
from rlkl.updates.base import PolicyUpdate


@dataclass(slots=True, kw_only=True)
class Trainer:
    """A run whose parts are ready. ``step`` is the number of finished steps, and the index of the next one.

    The learner decides which step is the last finished one: its change is in the weights. An error at any point of a
    step leaves a checkpoint of that step.
    """

    recipe: Recipe
    run_dir: Path
    hands: Hands
    source: PromptSource
    rewards: RewardSet
    update: PolicyUpdate
    tracker: Tracker
    tokenizer: Any
    processor: Any
    """For `processor`, `recipe_values` and `fingerprints`, see `Saver`."""
    recipe_values: Mapping[str, Any] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    schedule: Schedule = field(init=False)
    publisher: Publisher = field(init=False)
    saver: Saver = field(init=False)
    watch: Watch = field(init=False)
    waiting: Waiting = field(init=False)

    def __post_init__(self) -> None:
        recipe, source, hands = self.recipe, self.source, self.hands
        collector = build_collector(recipe, hands.sampler, self.rewards, self.tokenizer, prompts=len(source))
        self.schedule = build_schedule(Selector(recipe=recipe, source=source, collector=collector, update=self.update))
        self.publisher = Publisher(recipe=recipe, weights=hands.weights, source=source, tokenizer=self.tokenizer)
        self.watch = Watch(samples=self.run_dir / "samples")
        self.waiting = Waiting(note=self.tracker.note)
        self.saver = Saver(
            run_dir=self.run_dir,
            keep=recipe.checkpoint.keep,
            hands=hands,
            publisher=self.publisher,
            source=source,
            rewards=self.rewards,
            tracker=self.tracker,
            processor=self.processor,
            recipe_values=self.recipe_values,
            fingerprints=self.fingerprints,
        )

    def run(self) -> RunResult:
        """Train to the recipe's last step, or to the end of the step in which a stop is asked for."""
        with StopRequest() as stop:
            try:
                self._train(stop)
                stopped_by = stop.signal_number if self.step < self.recipe.steps else None
                policy_dir = self.saver.export() if stopped_by is None else None
            except (Exception, SystemExit) as error:
                problem = self._rescue()
                error.add_note(self.saver.advice(self.step, problem))
                raise
            finally:
                self.schedule.close()
        self.tracker.finish(RunSummary(interrupted=stopped_by is not None, policy_dir=policy_dir))
        status, exit_code = ("done", 0) if stopped_by is None else ("interrupted", 128 + stopped_by)
        return RunResult(run_dir=self.run_dir, status=status, exit_code=exit_code, metrics=self.metrics)

    def resume(self, checkpoint: Path, state: LoopState) -> None:
        """Continue from a checkpoint."""
        self.hands.learner.restore(checkpoint)
        self.step = state.step
        self.schedule.resume(read_pending(checkpoint, self.source, position=state.position), state.step)
        self.watch.resume(self.update.alarms(self.tracker.records))

    def _train(self, stop: StopRequest) -> None:
        if self.recipe.rollout.workers:
            self.waiting.enter(START)
        self.publisher.publish_first(self.step)
        while self.step < self.recipe.steps and stop.signal_number is None:
            self._train_step()
            if self.step % self.recipe.checkpoint.every == 0:
                self.saver.save_once(self.step, self.schedule.pending())
        self.saver.save_once(self.step, self.schedule.pending())

    def _train_step(self) -> None:
        clock = Clock(entered=self.waiting.enter, sampler=self.hands.sampler)
        selection = self.schedule.collect(self.step, clock)
        probes = self.publisher.probes(selection.groups)
        before, due = self.publisher.before_step(probes), self.tracker.samples_due(self.step)
        with clock.time("learner"):
            learned = self.hands.learner.learn(selection, step=self.step, probes=before, samples=due)
        self.schedule.before_publish(clock)
        with clock.time("publish"):
            synced = self.publisher.publish(step_number(self.step), probes)
        self.schedule.published(step_number(self.step))
        timed = clock.metrics(rollouts=selection.rollout_count, tokens=selection.token_count)
        self.metrics = {**selection.metrics, **learned.metrics, **synced, **timed}
        alarms = self.update.alarms([*self.tracker.records, self.metrics])
        self.metrics[RULE_ALARMS] = float(len(alarms))
        columns, pictures = token_columns(selection, learned.token_columns), learned.pictures
        self.tracker.log(self.step, self.metrics, selection.groups, columns, pictures)
        self.watch.alarms(alarms)
        self._finish_step()
        self.watch.gradient(self.metrics)

    def _finish_step(self) -> None:
        self.step = step_number(self.step)
        self.schedule.trained()

    def _rescue(self) -> BaseException | None:
        """Save the last step that the learner finished, after an error; return the error that this ended with."""
        try:
            if self.hands.learner.finished_steps() > self.step:  # the step is in the weights, but not recorded
                self._finish_step()
            self.schedule.take_back()
            self.tracker.drain()
            self.saver.save_once(self.step, self.schedule.pending())
        except (RlklError, OSError, RuntimeError, ValueError, TypeError) as error:
            return error
        return None
