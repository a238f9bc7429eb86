"""Starts the actors of a run: learner and rollout workers, and gives the loop its three hands."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from rlkl.actors.calls import wait_all
from rlkl.actors.cluster import connect
from rlkl.actors.learner import RayLearner
from rlkl.actors.learners import LearnerRanks, rank_names
from rlkl.actors.reservation import Reservation, cluster_nodes
from rlkl.actors.rewards import RayRewardWorker, worker_maker
from rlkl.actors.sampler import RaySampler
from rlkl.actors.shells import LearnerWorker, RolloutWorker
from rlkl.actors.weight_sync import RayWeightSync
from rlkl.actors.weight_transport import GroupSettings, GroupTransport, HostTransport, WeightTransport, Workers
from rlkl.learner.learner import LearnerSpec
from rlkl.recipe import Recipe
from rlkl.recipe.placement import LEARNER as LEARNER_ROLE
from rlkl.recipe.placement import WORKER, Placement, memory_fraction, place, reserved_cpus
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
        self._own_ray = connect(recipe.cluster, cpus=math.ceil(reserved_cpus(recipe)))
        try:
            self._start(recipe, spec, engine, place(recipe, cluster_nodes()))
            self.learner.check_shares(run_dir)
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
        learners = reserved.by_node(actor for actor in placement.actors if actor.role == LEARNER_ROLE)
        workers = sorted((actor for actor in placement.actors if actor.role == WORKER), key=lambda actor: actor.number)
        for actor in workers:
            threads = recipe.rollout.threads or reserved.cores(actor)
            options = reserved.options(actor, threads=threads)
            self._actors.append(ray.remote(RolloutWorker).options(**options).remote())
        rollout_actors, names = list(self._actors), [f"rollout worker {actor.number}" for actor in workers]
        learner_actors: list[Any] = []
        for actor in learners:
            options = reserved.options(actor, threads=recipe.learner.threads or reserved.cores(actor))
            learner_actors.append(ray.remote(LearnerWorker).options(**options).remote())
            self._actors.append(learner_actors[-1])
        call_timeout_s = recipe.cluster.call_timeout_s
        ranks = LearnerRanks(learner_actors, timeout_s=call_timeout_s)
        refs = [worker.start.remote(recipe.rollout.engine, engine) for worker in rollout_actors]
        refs += ranks.start(spec, reserved.address(learners[0]), timeout_s=timeout_s)
        wait_all(refs, who=[*names, *rank_names(len(learners))], what="start", timeout_s=timeout_s)
        self.sampler = RaySampler(rollout_actors, names, timeout_s=call_timeout_s)
        self.learner = RayLearner(ranks)
        hosts = Workers(actors=rollout_actors, names=names, timeout_s=call_timeout_s)
        transport: WeightTransport = HostTransport(ranks, hosts)
        if decided_transport(recipe, placement) == "group":
            settings = GroupSettings(
                host=reserved.address(learners[0]),
                processes=recipe.rollout.tensor_parallel,
                backend="nccl" if have_own_gpus(placement) else "gloo",
            )
            transport = GroupTransport(ranks, hosts, settings)
        self.weights = RayWeightSync(self.learner, hosts, transport, recipe)

    def close(self) -> None:
        """End the actors; safe to call twice."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []
        if self._reservation is not None:
            self._reservation.release()
            self._reservation = None
        if self._own_ray and ray.is_initialized():
            ray.shutdown()
