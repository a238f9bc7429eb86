"""The loop: collect, learn, publish, record. Everything else is set-up."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from rlkl.data.prompts import PromptSource
from rlkl.errors import ExportError, RlklError
from rlkl.learner.manifest import SavedFile
from rlkl.recipe import Recipe
from rlkl.rewards import RewardSet
from rlkl.rollout.collect import Draw
from rlkl.rollout.engine import Request
from rlkl.system.interrupt import StopRequest
from rlkl.tracking.tracker import RunSummary, Tracker
from rlkl.training.checkpoint import Checkpoints, LoopState
from rlkl.training.clock import Clock
from rlkl.training.collect import Collector, build_collector
from rlkl.types import Completion, Example, Image, Probe, RolloutGroup
from rlkl.updates.base import PolicyUpdate
from rlkl.updates.filters import filter_groups
from rlkl.weights import build_probes

logger = logging.getLogger(__name__)

STEPS_WITHOUT_GRADIENT = 10
"""So many in a row are worth a warning, and again each time their number has doubled."""


class Backend(Protocol):
    """What the loop asks of the machines behind it; see `rlkl.actors.backend.RayBackend`."""

    def stream(self, requests: Sequence[Request]) -> Iterator[list[tuple[int, Completion]]]: ...

    def prepare(
        self, examples: Sequence[Example], left_out: Sequence[Example], probes: Sequence[Probe], step: int
    ) -> dict[str, float]: ...

    def token_columns(self) -> Mapping[str, Sequence[Sequence[float]]]: ...

    def corrupted_pictures(self) -> Mapping[int, Sequence[Image]]: ...

    def step(self, step: int) -> dict[str, float]: ...

    def publish(self, version: int, probes: Sequence[Probe]) -> float: ...

    def check_export(self, folder: Path, probes: Sequence[Probe]) -> None: ...

    def finished_steps(self) -> int: ...

    def save(self, folder: Path) -> Mapping[str, SavedFile]: ...

    def restore(self, folder: Path) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """How a run ended. ``exit_code``: 0 done, 128 + signal number when it was interrupted (its state is saved)."""

    run_dir: Path
    status: Literal["done", "interrupted"]
    exit_code: int
    metrics: dict[str, float]
    """What the last step measured."""


@dataclass(slots=True, kw_only=True)
class Trainer:
    """One run, set up: runs steps from ``step`` on. ``position`` counts the prompts drawn so far.

    The learner decides which step is the last finished one: the step whose change is in its weights. An error at any
    point of a step, before or after the weights moved, leaves a checkpoint of that step.
    """

    recipe: Recipe
    run_dir: Path
    backend: Backend
    source: PromptSource
    rewards: RewardSet
    update: PolicyUpdate
    tracker: Tracker
    tokenizer: Any
    processor: Any
    """What is saved beside the policy: the tokenizer, of a vision-language model with its picture processor."""
    recipe_values: Mapping[str, Any] = field(default_factory=dict)
    """The recipe as checkpoints keep it, with absolute paths."""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """Hashes of what the recipe refers to, as checkpoints keep them."""
    step: int = 0
    position: int = 0
    finished_position: int = 0
    """``position`` at the end of the last finished step."""
    steps_without_gradient: int = 0
    alarmed: frozenset[str] = frozenset()
    """The rule's alarms that were on after the last step."""
    metrics: dict[str, float] = field(default_factory=dict)
    collector: Collector = field(init=False)

    def __post_init__(self) -> None:
        self.collector = build_collector(
            self.recipe, self.backend, self.rewards, self.tokenizer, prompts=len(self.source)
        )

    def run(self) -> RunResult:
        """Train to the recipe's last step, or to the end of the step in which a stop is asked for."""
        checkpoints = Checkpoints(self.run_dir, keep=self.recipe.checkpoint.keep)
        with StopRequest() as stop:
            try:
                self._train(checkpoints, stop)
                stopped_by = stop.signal_number if self.step < self.recipe.steps else None
                policy_dir = self._export(checkpoints) if stopped_by is None else None
            except (Exception, SystemExit) as error:
                self._rescue(checkpoints, error)
                raise
        self.tracker.finish(RunSummary(interrupted=stopped_by is not None, policy_dir=policy_dir))
        return self._result("done", 0) if stopped_by is None else self._result("interrupted", 128 + stopped_by)

    def _train(self, checkpoints: Checkpoints, stop: StopRequest) -> None:
        self._publish_first_weights()
        while self.step < self.recipe.steps and stop.signal_number is None:
            self._train_step()
            if self.step % self.recipe.checkpoint.every == 0:
                self._save_once(checkpoints)
        self._save_once(checkpoints)

    def _rescue(self, checkpoints: Checkpoints, error: BaseException) -> None:
        """After ``error``, save the last step that the learner finished, and note in the error how to go on."""
        try:
            if self.backend.finished_steps() > self.step:  # the error came between the learner's step and its record
                self._finish_step()
            self.position = self.finished_position
            self.tracker.drain()
            self._save_once(checkpoints)
        except (RlklError, OSError, RuntimeError, ValueError, TypeError) as second:
            if self.step and checkpoints.has(self.step):
                note = f"All {self.step} recorded steps are saved; the learner does not answer ({second})."
            else:
                note = f"The steps since the last checkpoint could not be saved ({second})."
        else:
            note = f"All {self.step} finished steps are saved." if self.step else "No step was finished."
        if checkpoints.complete():
            note += f" Once the cause is removed, go on with: rlkl train --resume {self.run_dir}"
        error.add_note(note)

    def _train_step(self) -> None:
        clock = Clock()
        groups, examples, metrics = self._collect(clock)
        probes = self._probes(groups)
        metrics |= clock.run("learner", self.backend.prepare, examples, _left_out(groups, examples), probes, self.step)
        columns = self._token_columns(groups, examples)
        corrupted = self.backend.corrupted_pictures() if self.tracker.samples_due(self.step) else {}
        metrics |= clock.run("learner", self.backend.step, self.step)
        gap = clock.run("publish", self.backend.publish, self.step + 1, probes)
        if self.recipe.rollout.workers:
            metrics |= {"weights/verified": 1.0, "weights/probe_max": gap, "weights/version": self.step + 1.0}
        completions = [rollout.completion for group in groups for rollout in group.rollouts]
        tokens = sum(len(completion.token_ids) for completion in completions)
        self.metrics = metrics | clock.metrics(rollouts=len(completions), tokens=tokens)
        alarms = self.update.alarms([*self.tracker.records, self.metrics])
        self.metrics["update/alarms"] = float(len(alarms))
        self.tracker.log(self.step, self.metrics, groups, columns, corrupted)
        self._tell(alarms)
        self._finish_step()
        self._watch_gradient()

    def _finish_step(self) -> None:
        self.step += 1
        self.finished_position = self.position

    def _collect(self, clock: Clock) -> tuple[list[RolloutGroup], list[Example], dict[str, float]]:
        """Rounds of prompts until the rule has selected a full step of groups, at most ``rollout.max_rounds``."""
        wanted = self.recipe.rollout.prompts_per_step
        groups: list[RolloutGroup] = []
        examples: list[Example] = []
        rounds = 0
        while rounds < self.recipe.rollout.max_rounds and _group_count(examples) < wanted:
            rounds += 1
            groups += self.collector.groups(self._draw(), step=self.step, clock=clock)
            scored = [group.scored() for group in groups]
            examples = self.update.select(filter_groups(scored, self.recipe.update.filter))
        kept = sorted({example.group for example in examples})[:wanted]
        examples = [example for example in examples if example.group in kept]
        metrics = self.collector.metrics(groups, step=self.step)
        metrics["rollout/rounds"] = float(rounds)
        selectable = sum(rollout.scored for group in groups for rollout in group.rollouts)
        metrics["update/selected_fraction"] = len(examples) / max(selectable, 1)
        metrics["data/epoch"] = self.position / len(self.source)
        return groups, examples, metrics

    def _draw(self) -> list[Draw]:
        prompts = self.source.take(self.position, self.recipe.rollout.prompts_per_step)
        draws = [Draw(prompt=prompt, position=self.position + n) for n, prompt in enumerate(prompts)]
        self.position += len(draws)
        return draws

    def _token_columns(
        self, groups: Sequence[RolloutGroup], examples: Sequence[Example]
    ) -> dict[str, list[Sequence[float] | None]]:
        """The rule's per-token columns, an entry a rollout, None where not selected; only when samples are due."""
        if not self.tracker.samples_due(self.step):
            return {}
        keys = [(example.group, example.rollout.sample_index) for example in examples]
        columns = {}
        for name, rows in self.backend.token_columns().items():
            row_of = dict(zip(keys, rows, strict=True))
            columns[name] = [
                row_of.get((number, rollout.sample_index))
                for number, group in enumerate(groups)
                for rollout in group.rollouts
            ]
        return columns

    def _probes(self, groups: Sequence[RolloutGroup]) -> list[Probe]:
        chosen = groups[: self.recipe.weights.probe_prompts] if self.recipe.rollout.workers else []
        return build_probes(
            [group.prompt for group in chosen],
            [group.rollouts[0].completion.token_ids for group in chosen],
            engine_limit=self._engine_limit,
        )

    @property
    def _engine_limit(self) -> int:
        return self.recipe.data.max_prompt_tokens + self.recipe.rollout.max_new_tokens

    def _publish_first_weights(self) -> None:
        """Bring every engine to the learner's weights before anything is sampled, after a resume as at the start."""
        if self.recipe.rollout.workers:
            self.backend.publish(self.step, self._data_probes())

    def _data_probes(self) -> list[Probe]:
        """The first prompts with their answers, or with an end-of-sequence id if the data has none."""
        prompts = self.source.take(0, self.recipe.weights.probe_prompts)
        stop = (self.tokenizer.eos_token_id,)
        answers = [prompt.answers[0] if prompt.answers else stop for prompt in prompts]
        return build_probes(prompts, answers, engine_limit=self._engine_limit)

    def _tell(self, alarms: Mapping[str, str]) -> None:
        """Warn of what has set in since the step before."""
        for name in sorted(alarms.keys() - self.alarmed):
            logger.warning("%s", alarms[name])
        self.alarmed = frozenset(alarms)

    def _watch_gradient(self) -> None:
        """Warn if many steps in a row taught nothing; a sparse reward may still succeed later, so the run goes on."""
        self.steps_without_gradient = 0 if self.metrics["optim/grad_norm"] > 0 else self.steps_without_gradient + 1
        doublings = self.steps_without_gradient / STEPS_WITHOUT_GRADIENT
        if doublings < 1 or not math.log2(doublings).is_integer():
            return
        problem = f"the last {self.steps_without_gradient} steps had no gradient"
        if "reward/std" in self.metrics:
            spread = self.metrics["reward/std"]
            problem += f" (reward/std is {spread:.3g}): samples of a prompt with equal rewards leave nothing to compare"
        logger.warning(
            "%s. Look at the samples in %s: is the reward constant, or are the prompts too hard or too easy? More "
            "rollout.samples_per_prompt or a finer reward helps",
            problem,
            self.run_dir / "samples",
        )

    def _save_once(self, checkpoints: Checkpoints) -> None:
        """Write a checkpoint of the last finished step unless it is there."""
        if self.step == 0 or checkpoints.has(self.step):
            return
        self.tracker.flush()
        state = LoopState(
            step=self.step,
            position=self.position,
            run_id=self.tracker.run_id,
            reward_fingerprints=self.rewards.fingerprints,
            data_fingerprint=self.source.fingerprint,
            recipe=self.recipe_values,
            fingerprints=self.fingerprints,
        )
        with checkpoints.writing(state) as draft:
            self.processor.save_pretrained(draft.folder / "policy")
            draft.written |= self.backend.save(draft.folder)

    def _export(self, checkpoints: Checkpoints) -> Path:
        """Copy the last checkpoint's policy to the run folder and prove that it is the learner's.

        Raises `ExportError`; the run folder then has no policy of these steps, and the checkpoint stays.
        """
        final, aside = self.run_dir / "policy", self.run_dir / ".writing-policy"
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint = checkpoints.latest()
        shutil.copytree(checkpoint / "policy", aside)
        try:
            self.backend.check_export(aside, self._data_probes())
        except ExportError as error:
            raise ExportError(
                f"the exported policy is not what the learner holds, so {final} was not written: {error}. "
                f"The checkpoint {checkpoint} is complete; what was exported is in {aside}"
            ) from error
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        return final

    def resume(self, checkpoint: Path, state: LoopState) -> None:
        """Go on from what `_save_once` wrote."""
        self.backend.restore(checkpoint)
        self.step = state.step
        self.position = self.finished_position = state.position
        self.alarmed = frozenset(self.update.alarms(self.tracker.records))

    def _result(self, status: Literal["done", "interrupted"], exit_code: int) -> RunResult:
        return RunResult(run_dir=self.run_dir, status=status, exit_code=exit_code, metrics=self.metrics)


def _left_out(groups: Sequence[RolloutGroup], examples: Sequence[Example]) -> list[Example]:
    """The rollouts that no example holds."""
    taken = {(example.group, example.rollout.sample_index) for example in examples}
    return [
        Example(prompt=group.prompt, rollout=rollout, group=number)
        for number, group in enumerate(groups)
        for rollout in group.rollouts
        if (number, rollout.sample_index) not in taken
    ]


def _group_count(examples: Sequence[Example]) -> int:
    return len({example.group for example in examples})
