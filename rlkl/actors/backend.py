"""The loop's hands: rollout workers and learner as Ray actors, each call with a deadline."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import ray

from rlkl.actors.calls import stream_all, wait, wait_all
from rlkl.actors.cluster import Needs, check_room, connect, needs_of
from rlkl.actors.shells import LearnerWorker, RolloutWorker
from rlkl.errors import WeightSyncError
from rlkl.learner.learner import LearnerSpec
from rlkl.learner.manifest import SavedFile
from rlkl.learner.sharing import token_in
from rlkl.machine import this_machine
from rlkl.recipe import Recipe
from rlkl.recipe.resources import reward_needs
from rlkl.rollout.collect import share_out
from rlkl.rollout.engine import EngineSettings, Request
from rlkl.types import Completion, Example, Image, Probe
from rlkl.weights import ROUNDING_SHARE, TOLERANCE, Expected, Receipt, verify

_LEARNER = "the learner"


class RayBackend:
    """Starts the actors on construction; `close` ends them, and Ray too where this run started it."""

    def __init__(self, recipe: Recipe, spec: LearnerSpec, engine: EngineSettings, run_dir: Path) -> None:
        """Raise `EnvironmentProblem` if the cluster has no room, or if the learner does not share ``run_dir``."""
        self._timeout_s = recipe.cluster.call_timeout_s
        self._tolerance = recipe.weights.tolerance or TOLERANCE[recipe.model.dtype]
        self._rounding = self._tolerance * ROUNDING_SHARE[recipe.model.dtype]
        self._workers: list[Any] = []
        self._learner: Any = None
        self._names = [f"rollout worker {number}" for number in range(recipe.rollout.workers)]
        own_cpus = recipe.rollout.workers * recipe.rollout.cpus_per_worker + 1 + reward_needs(recipe).cpus
        self._own_ray = connect(recipe.cluster, cpus=math.ceil(own_cpus))
        try:
            needs = needs_of(recipe)
            check_room(needs, timeout_s=recipe.cluster.start_timeout_s)
            self._start(recipe, spec, engine, needs)
            self._check_shared(run_dir)
        except BaseException:
            self.close()
            raise

    def _start(self, recipe: Recipe, spec: LearnerSpec, engine: EngineSettings, needs: Needs) -> None:
        worker = ray.remote(RolloutWorker).options(
            num_cpus=needs.worker_cpus, num_gpus=needs.worker_gpus, runtime_env=_threads(recipe.rollout.threads)
        )
        learner = ray.remote(LearnerWorker).options(
            num_cpus=1, num_gpus=needs.learner_gpus, runtime_env=_threads(recipe.learner.threads)
        )
        self._workers = [worker.remote() for _ in self._names]
        self._learner = learner.remote()
        refs = [self._learner.start.remote(spec)]
        refs += [worker.start.remote(recipe.rollout.engine, engine) for worker in self._workers]
        wait_all(refs, who=[_LEARNER, *self._names], what="start", timeout_s=recipe.cluster.start_timeout_s)

    def stream(self, requests: Sequence[Request]) -> Iterator[list[tuple[int, Completion]]]:
        """One completion a request, with its number, as they finish; the work shared out over all workers."""
        parts = share_out(requests, len(self._workers))
        starts = list(accumulate((len(part) for part in parts), initial=0))
        generators = [worker.stream.remote(part) for worker, part in zip(self._workers, parts, strict=True)]
        arriving = stream_all(generators, who=self._names, what="generate", timeout_s=self._timeout_s)
        for worker, finished in arriving:
            yield [(starts[worker] + number, completion) for number, completion in finished]

    def prepare(
        self, examples: Sequence[Example], left_out: Sequence[Example], probes: Sequence[Probe], step: int
    ) -> dict[str, float]:
        """See `Learner.prepare`."""
        return self._call_learner("prepare", self._learner.prepare.remote(examples, left_out, probes, step))

    def token_columns(self) -> dict[str, list[tuple[float, ...]]]:
        """See `Learner.token_columns`."""
        return self._call_learner("hand out its token columns", self._learner.token_columns.remote())

    def corrupted_pictures(self) -> dict[int, tuple[Image, ...]]:
        """See `Learner.corrupted_pictures`."""
        return self._call_learner("hand out its pictures", self._learner.corrupted_pictures.remote())

    def step(self, step: int) -> dict[str, float]:
        """See `Learner.step`."""
        return self._call_learner("step", self._learner.step.remote(step))

    def publish(self, version: int, probes: Sequence[Probe]) -> float:
        """Give every worker the learner's weights and prove it; returns the largest log-prob difference (nats).

        Raises `WeightSyncError`. The package goes from the learner to the workers through Ray's object store. Without
        workers there is nobody to publish to.
        """
        if not self._workers:
            return 0.0
        package = self._learner.pack.remote(version)
        answers = [worker.receive.remote(package, probes) for worker in self._workers]
        expected: Expected = self._call_learner("score the probes", self._learner.expect.remote(probes))
        receipts: list[Receipt] = wait_all(answers, who=self._names, what="take in weights", timeout_s=self._timeout_s)
        try:
            return verify(
                expected,
                dict(zip(self._names, receipts, strict=True)),
                version=version,
                tolerance=self._tolerance,
                rounding=self._rounding,
            )
        except WeightSyncError as error:
            raise WeightSyncError(f"{error} {self._diagnosis(package)}") from None

    def finished_steps(self) -> int:
        """See `Learner.finished_steps`. An earlier call that is still running ends first."""
        return self._call_learner("tell its last step", self._learner.finished_steps.remote())

    def save(self, folder: Path) -> dict[str, SavedFile]:
        """See `Learner.save`."""
        return self._call_learner("save", self._learner.save.remote(str(folder)))

    def restore(self, folder: Path) -> None:
        """See `Learner.restore`."""
        self._call_learner("restore its state", self._learner.restore.remote(str(folder)))

    def close(self) -> None:
        """End the actors; safe to call twice."""
        for actor in [*self._workers, *([self._learner] if self._learner is not None else [])]:
            ray.kill(actor)
        self._workers, self._learner = [], None
        if self._own_ray and ray.is_initialized():
            ray.shutdown()

    def _check_shared(self, run_dir: Path) -> None:
        """Raise `EnvironmentProblem` unless the learner's process reads and writes the same run folder as this one."""
        with token_in(run_dir) as token:
            token.check(self._call_learner("look at the run folder", self._learner.look.remote(token)), _LEARNER)

    def _call_learner(self, what: str, ref: Any) -> Any:
        return wait(ref, who=_LEARNER, what=what, timeout_s=self._timeout_s)

    def _diagnosis(self, package: Any) -> str:
        refs = [worker.differing_weights.remote(package) for worker in self._workers]
        reports = wait_all(refs, who=self._names, what="read back weights", timeout_s=self._timeout_s)
        found = [f"{name}: {', '.join(report)}" for name, report in zip(self._names, reports, strict=True) if report]
        if found:
            return f"Read back, these are not what was published: {'; '.join(found)}."
        return "All parameters that can be read back are what was published; suspect those the engine packs or fuses."


def _threads(threads: int | None) -> dict[str, Any]:
    return {"env_vars": {"OMP_NUM_THREADS": str(threads or this_machine().cpus)}}
