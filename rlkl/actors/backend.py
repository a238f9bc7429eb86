"""The loop's hands: rollout workers and learner as Ray actors, each call with a deadline."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import ray

from rlkl.actors.calls import stream_all, wait, wait_all
from rlkl.actors.cluster import connect
from rlkl.actors.reservation import Reservation, cluster_nodes
from rlkl.actors.rewards import RayRewardWorker, worker_maker
from rlkl.actors.shells import LearnerWorker, RolloutWorker
from rlkl.errors import ExportError, WeightSyncError
from rlkl.learner.export import ExportScores
from rlkl.learner.learner import LearnerSpec
from rlkl.learner.manifest import SavedFile
from rlkl.learner.sharing import token_in
from rlkl.recipe import Recipe
from rlkl.recipe.placement import LEARNER, WORKER, Placement, memory_fraction, place, reserved_cpus
from rlkl.recipe.resources import describe
from rlkl.rewards.execution.pool import WorkerSpec
from rlkl.rollout.collect import share_out
from rlkl.rollout.engine import EngineSettings, Request
from rlkl.types import Completion, Example, Image, Probe
from rlkl.weights import Expected, Probes, Proof, Receipt, bounds_for, check_export

logger = logging.getLogger(__name__)

_LEARNER = "the learner"


class RayBackend:
    """Starts the actors on construction; `close` ends them, and Ray too where this run started it."""

    def __init__(self, recipe: Recipe, spec: LearnerSpec, engine: EngineSettings, run_dir: Path) -> None:
        """Raise `EnvironmentProblem` if the cluster has no room, or if the learner does not share ``run_dir``."""
        self._timeout_s = recipe.cluster.call_timeout_s
        self._workers: list[Any] = []
        self._learner: Any = None
        self._names = [f"rollout worker {number}" for number in range(recipe.rollout.workers)]
        self._reservation: Reservation | None = None
        self._own_ray = connect(recipe.cluster, cpus=math.ceil(reserved_cpus(recipe)))
        try:
            self._start(recipe, spec, engine, place(recipe, cluster_nodes()))
            self._check_shared(run_dir)
        except BaseException:
            self.close()
            raise

    def _start(self, recipe: Recipe, spec: LearnerSpec, engine: EngineSettings, placement: Placement) -> None:
        """Reserve room for all actors, and start the learner and the workers in it."""
        for line in describe(recipe, placement):
            logger.info("%s", line)
        timeout_s = recipe.cluster.start_timeout_s
        reserved = self._reservation = Reservation(placement, own_ray=self._own_ray, timeout_s=timeout_s)
        self.make_reward_worker: Callable[[WorkerSpec], RayRewardWorker] = worker_maker(recipe, reserved)
        engine = replace(engine, memory_fraction=memory_fraction(recipe, placement))
        (learner,) = (actor for actor in placement.actors if actor.role == LEARNER)
        workers = sorted((actor for actor in placement.actors if actor.role == WORKER), key=lambda actor: actor.number)
        for actor in workers:
            threads = recipe.rollout.threads or reserved.cores(actor)
            options = reserved.options(actor, threads=threads)
            self._workers.append(ray.remote(RolloutWorker).options(**options).remote())
        options = reserved.options(learner, threads=recipe.learner.threads or reserved.cores(learner))
        self._learner = ray.remote(LearnerWorker).options(**options).remote()
        refs = [self._learner.start.remote(spec)]
        refs += [worker.start.remote(recipe.rollout.engine, engine) for worker in self._workers]
        wait_all(refs, who=[_LEARNER, *self._names], what="start", timeout_s=timeout_s)
        layers, width = self._call_learner("give its size", self._learner.size.remote())
        self._bounds_for = partial(bounds_for, layers=layers, width=width)
        bounds = self._bounds_for(recipe.model.dtype, tolerance=recipe.weights.tolerance)
        self._proof = Proof(bounds)

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
        """See `Learner.prepare`. The first ``probes`` are kept for the run, so they are scored before the step too."""
        new = probes if self._proof.wants_probes else ()
        return self._call_learner("prepare", self._learner.prepare.remote(examples, left_out, new, step))

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
        keep = self._proof.wants_probes and len(probes) > 0
        asked = Probes(kept=probes) if keep else Probes(current=probes, kept=self._proof.kept)
        before = [worker.score.remote(probes) for worker in self._workers] if keep else []
        package = self._learner.pack.remote(version)
        answers = [worker.receive.remote(package, asked) for worker in self._workers]
        expected: Expected = self._call_learner("score the probes", self._learner.expect.remote(asked))
        scores = wait_all(before, who=self._names[: len(before)], what="score the probes", timeout_s=self._timeout_s)
        receipts: list[Receipt] = wait_all(answers, who=self._names, what="take in weights", timeout_s=self._timeout_s)
        try:
            if keep and expected.before is not None:
                self._proof.keep(probes, expected.before, dict(zip(self._names, scores, strict=True)))
            return self._proof.check(expected.after, dict(zip(self._names, receipts, strict=True)), version=version)
        except WeightSyncError as error:
            raise WeightSyncError(f"{error} {self._diagnosis(package)}") from None

    def check_export(self, folder: Path, probes: Sequence[Probe]) -> None:
        """Load the policy that was saved to ``folder`` and prove that it is the learner's; the learner ends with it.

        ``probes`` are taken if no step has kept any. Raises `ExportError`.
        """
        kept = self._proof.kept or tuple(probes)
        found: ExportScores = self._call_learner(
            "compare the exported policy", self._learner.compare_export.remote(str(folder), kept)
        )
        if found.problem is not None:
            raise ExportError(f"it {found.problem}")
        bounds = self._bounds_for(found.dtype)
        before = self._proof.start if found.before is None else found.before
        check_export(
            before, found.learner, found.exported, replace(bounds, rounding=max(bounds.rounding, found.rounding))
        )

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
        if self._reservation is not None:
            self._reservation.release()
            self._reservation = None
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
