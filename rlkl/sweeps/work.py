"""One piece of work of a sweep: train a run and evaluate it, or evaluate an untrained model."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rlkl.analysis.sweep_plan import EVALUATION_FILE, UNTRAINED, PlannedRun, SweepPlan
from rlkl.errors import InputError
from rlkl.recipe.run_lock import live_owner
from rlkl.sweeps.child import Child, open_log
from rlkl.sweeps.commands import evaluate_words, train_words
from rlkl.sweeps.state import (
    ATTEMPTS,
    STARTS,
    RunState,
    failure_of,
    has_steps,
    is_evaluated,
    move_aside,
    record_failure,
    state_of,
    write_json,
)

INTERRUPTED = (130, 143, -2, -15)
"""Exit codes of a child that was stopped; it is not a failure and goes on at the next start."""
_OUTPUT = ".output-of-eval.json"
"""The output of `rlkl eval` until it is checked."""

Outcome = Literal["done", "failed", "interrupted"]


@dataclass(slots=True, kw_only=True)
class Work:
    """A run, or an untrained model (``run`` is None), on its way."""

    plan: SweepPlan
    root: Path
    run: PlannedRun | None
    model: str
    """Folder of the untrained model, within `UNTRAINED`."""
    retry: bool = False
    """Try a failed run once more."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of its children."""
    started: float | None = None
    """Time at which its first child started; None: not yet."""
    waits_for: str = ""
    """The process of an earlier sweep that still works on it."""
    trained: bool = False
    """It has trained in this sweep, or gone on with training."""
    stage: Literal["train", "evaluate"] = "train"
    child: Child | None = None
    starts: int = 0
    """Number of starts of its training."""

    @property
    def label(self) -> str:
        """The work in words."""
        return self.run.label if self.run is not None else f"untrained {self.plan.models[self.model]}"

    @property
    def folder(self) -> Path:
        """The folder of the run, or of the untrained model."""
        return self.run.folder(self.root) if self.run is not None else self.root / UNTRAINED / self.model

    @property
    def log(self) -> Path:
        """The log of its children."""
        return self.run.log(self.root) if self.run is not None else self.folder.with_name(f"{self.model}.log")

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        trained = self.run is None or state_of(self.folder) is RunState.TRAINED
        return trained and (self.plan.evaluate is None or is_evaluated(self.folder))

    @property
    def has_failed(self) -> bool:
        """Whether it failed before, and is not to be tried again."""
        failure = None if self.run is None else failure_of(self.run, self.root)
        return failure is not None and not (self.retry and failure["attempts"] < ATTEMPTS)

    def step(self, *, may_go_on: bool) -> Outcome | None:
        """Start the next child if none runs, or look at the one that runs; return the outcome once all is done.

        ``may_go_on``: whether another child may be started after this one.
        """
        if self.child is None:
            return self._start()
        code = self.child.poll()
        return None if code is None else self._end(code, may_go_on=may_go_on)

    def _start(self) -> Outcome | None:
        """Start the next child. Does nothing as long as a process of an earlier sweep works on it."""
        log = open_log(self.log)
        if log is None:
            self.waits_for = "a process of an earlier sweep"
            return None
        if owner := live_owner(self.folder):
            log.close()
            self.waits_for = str(owner)
            return None
        if self.is_done:  # that process has finished it
            log.close()
            return "done"
        self.started = self.started or time.monotonic()
        state = RunState.TRAINED if self.run is None else state_of(self.folder)
        if state is not RunState.TRAINED:
            assert self.run is not None
            if state is RunState.PARTIAL:
                move_aside(self.folder)
            words, stdout = train_words(self.run, self.plan, self.root, state), None
            self.stage, self.trained = "train", True
            self.starts += 1
        else:
            assert self.plan.evaluate is not None
            self.folder.mkdir(parents=True, exist_ok=True)
            policy = self.plan.models[self.model] if self.run is None else str(self.folder)
            words, stdout = evaluate_words(policy, self.model, self.plan, self.root), self.folder / _OUTPUT
            self.stage = "evaluate"
        self.child = Child(words, log, stdout=stdout, env=self.environment)
        return None

    def _end(self, code: int, *, may_go_on: bool) -> Outcome | None:
        """Take a child's exit code; start the evaluation after the training."""
        self.child = None
        if code in INTERRUPTED or (code < 0 and not may_go_on):
            return "interrupted"
        if code == 0 and self.stage == "evaluate":
            code = self._keep_evaluation()
        if code == 0 and self.run is not None and not (self.folder / "policy").is_dir():
            code = 1
        if code != 0:
            if may_go_on and self._never_started(code):
                return self._start()
            if self.run is not None:
                record_failure(self.run, self.root, stage=self.stage, exit_code=code)
            return "failed"
        if not self.is_done:
            return self._start() if may_go_on else "interrupted"
        if self.run is not None:
            self.run.failure(self.root).unlink(missing_ok=True)
        return "done"

    def _never_started(self, code: int) -> bool:
        """Return whether the training failed before its first step, and not by bad input, and may be started again."""
        is_start = self.stage == "train" and not has_steps(self.folder)
        return is_start and code != InputError.exit_code and self.starts < STARTS

    def _keep_evaluation(self) -> int:
        """Check the output of `rlkl eval` and give it its name; return 0, or 1 if it is not one."""
        try:
            found = json.loads((self.folder / _OUTPUT).read_text(encoding="utf-8"))
            metrics = {name: float(value) for name, value in found["metrics"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            with self.log.open("a", encoding="utf-8") as log:
                log.write(f"error: `rlkl eval` printed something else than one JSON object with metrics: {error!r}\n")
            return 1
        write_json(self.folder / EVALUATION_FILE, {**found, "metrics": metrics})
        (self.folder / _OUTPUT).unlink()
        return 0
