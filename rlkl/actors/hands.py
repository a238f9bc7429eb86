"""Starts the actors of a run: learner and rollout workers, and gives the loop its three hands."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from rlkl.actors import stacks
from rlkl.actors.calls import wait_all
from rlkl.actors.cluster import connect
from rlkl.actors.learner import RayLearner
from rlkl.actors.learners import LearnerRanks, rank_names, start_rank
from rlkl.actors.reservation import Reservation, cluster_nodes
from rlkl.actors.rewards import RayRewardWorker, worker_maker
from rlkl.actors.sampler import RaySampler, start_worker
from rlkl.actors.turns import MemoryTurns
from rlkl.actors.weight_sync import RayWeightSync
from rlkl.actors.weight_transport import GroupSettings, GroupTransport, HostTransport, WeightTransport
from rlkl.actors.workers import Starting, Workers
from rlkl.learner.learner import LearnerSpec
from rlkl.recipe import Recipe
from rlkl.recipe.placement import LEARNER as LEARNER_ROLE
from rlkl.recipe.placement import WORKER, Actor, Placement, memory_fraction, place, reserved_cpus
from rlkl.recipe.resources import describe
from rlkl.recipe.transport import decided_transport, have_own_gpus
from rlkl.rewards.execution.pool import WorkerSpec
from rlkl.rollout.engine import EngineSettings

logger = logging.getLogger(__name__)


class RayHands:
    """Starts the actors on construction; `close` ends them, and Ray too if this run started it."""

    sampler: RaySampler
    learner: RayLearner
    weights: RayWeightSync

    def __init__(self, recipe: Recipe, spec: LearnerSpec, engine: EngineSettings, run_dir: Path) -> None:
        """Raise `EnvironmentProblem` if the cluster has no room, or if the learner does not share ``run_dir``."""
        self._actors: list[Any] = []
        self._reservation: Reservation | None = None
        self._workers: Workers | None = None
        stacks.keep_in(run_dir)
        self._own_ray = connect(recipe.cluster, cpus=math.ceil(reserved_cpus(recipe)))
        try:
            self._start(recipe, spec, engine, place(recipe, cluster_nodes()))
            self.learner.check_shares(run_dir)
        except BaseException:
            self.close()
            raise

    def _start(self, recipe: Recipe, spec: LearnerSpec, engine: EngineSettings, placement: Placement) -> None:
        """Reserve room for all actors, and start the learner and the workers in it."""
        timeout_s, call_timeout_s = recipe.cluster.start_timeout_s, recipe.cluster.call_timeout_s
        reserved = self._reservation = Reservation(placement, own_ray=self._own_ray, timeout_s=timeout_s)
        for line in describe(recipe, reserved.placement):
            logger.info("%s", line)
        self.make_reward_worker: Callable[[WorkerSpec], RayRewardWorker] = worker_maker(recipe, reserved)
        sleeps = recipe.rollout.placement == "colocated"
        engine = replace(engine, memory_fraction=memory_fraction(recipe, placement), sleeps=sleeps)
        workers = sorted((actor for actor in placement.actors if actor.role == WORKER), key=lambda actor: actor.number)
        names = _worker_names(workers)
        rollout_actors = [] if placement.in_turns else self._spawn(start_worker, workers, recipe.rollout.threads)
        learners = [actor for actor in placement.actors if actor.role == LEARNER_ROLE]
        handles = dict(zip(learners, self._spawn(start_rank, learners, recipe.learner.threads), strict=True))
        refs = [handle.visible_gpus.remote() for handle in handles.values()]
        gpus = wait_all(refs, who=rank_names(len(learners)), what="start", timeout_s=timeout_s)
        learners = reserved.rank_order(dict(zip(learners, gpus, strict=True)))
        if placement.in_turns:  # engines on GPUs that the ranks have named
            rollout_actors = self._spawn(start_worker, workers, recipe.rollout.threads)
        ranks = LearnerRanks([handles[actor] for actor in learners], timeout_s=call_timeout_s)
        refs = [worker.start.remote(recipe.rollout.engine, engine) for worker in rollout_actors]
        turns = None
        if sleeps:  # an engine claims its part of a GPU while the learner holds nothing there
            wait_all(refs, who=names, what="start", timeout_s=timeout_s)
            turns, refs, waiting = MemoryTurns(rollout_actors, names, timeout_s=call_timeout_s), [], []
            turns.to_learner()
        else:
            waiting = names
        refs += ranks.start(spec, reserved.address(learners[0]), timeout_s=timeout_s)
        wait_all(refs, who=[*waiting, *rank_names(len(learners))], what="start", timeout_s=timeout_s)
        by_group = decided_transport(recipe, placement) == "group"
        starting = None if by_group or sleeps else self._starting(recipe, engine, workers, rollout_actors)
        hosts = self._workers = Workers(rollout_actors, names, timeout_s=call_timeout_s, starting=starting)
        self.sampler = RaySampler(hosts)
        self.learner = RayLearner(ranks, turns)
        transport: WeightTransport = HostTransport(ranks, hosts, turns)
        if by_group:
            settings = GroupSettings(
                host=reserved.address(learners[0]),
                processes=recipe.rollout.tensor_parallel,
                backend="nccl" if have_own_gpus(placement) else "gloo",
            )
            transport = GroupTransport(ranks, hosts, settings)
        self.weights = RayWeightSync(self.learner, hosts, transport, recipe, turns)

    def _starting(
        self, recipe: Recipe, engine: EngineSettings, planned: Sequence[Actor], actors: Sequence[Any]
    ) -> Starting:
        """Return how to start a rollout worker anew in its place. ``actors``: the first ones, as ``planned``."""
        timeout_s = recipe.cluster.start_timeout_s
        refs = [actor.log_file.remote() for actor in actors]
        return Starting(
            spawn=lambda number: self._spawn(start_worker, [planned[number]], recipe.rollout.threads)[0],
            start=lambda actor: actor.start.remote(recipe.rollout.engine, engine),
            timeout_s=timeout_s,
            logs=wait_all(refs, who=_worker_names(planned), what="name their logs", timeout_s=timeout_s),
        )

    def _spawn(
        self, start: Callable[[Mapping[str, Any]], Any], actors: Sequence[Actor], threads: int | None
    ) -> list[Any]:
        """Start a process for each actor in its part of the reservation; ``start`` gets Ray's options."""
        assert self._reservation is not None
        spawned = []
        for actor in actors:
            options = self._reservation.options(actor, threads=threads or self._reservation.cores(actor))
            spawned.append(start(options))
            self._actors.append(spawned[-1])
        return spawned

    def close(self) -> None:
        """End the actors, and let no other thread start further ones; safe to call twice."""
        if self._workers is not None:
            self._workers.close()
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []
        if self._reservation is not None:
            self._reservation.release()
            self._reservation = None
        if self._own_ray and ray.is_initialized():
            ray.shutdown()


def _worker_names(workers: Sequence[Actor]) -> list[str]:
    """Return the names of rollout workers in messages."""
    return [f"rollout worker {worker.number}" for worker in workers]
