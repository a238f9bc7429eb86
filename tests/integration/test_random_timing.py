"""A step holds every completion once, in order, with its own reward, for any timing of the workers."""

import random
from collections.abc import Iterator, Sequence

import pytest
import ray

from rlkl.actors.cluster import connect
from rlkl.actors.sampler import RaySampler, start_worker
from rlkl.actors.workers import Workers
from rlkl.recipe import ClusterSection
from rlkl.rollout.engine import EngineSettings, Request
from rlkl.types import Completion
from tests.integration.collecting import check, collect
from tests.integration.timed_engine import shuffled

SETTINGS = EngineSettings(
    model_path="",
    dtype="float32",
    max_prompt_tokens=8,
    max_new_tokens=8,
    temperature=1.0,
    stop_token_ids=(1,),
    memory_fraction=0.5,
    kv_cache_gib=1,
)


class HandsOver:
    """Hands completions over in random parts, some of them without any, in random order."""

    def __init__(self, case: int) -> None:
        self._case = case

    idle_s = 0.0

    def submit(self, requests: Sequence[Request]) -> None:
        self._requests = requests

    def submit_together(self, requests: Sequence[Request], *, first: int) -> None:
        raise NotImplementedError

    def forget(self) -> None:
        raise NotImplementedError

    def finished(self) -> Iterator[list[tuple[int, Completion]]]:
        chance = random.Random(self._case)
        left = shuffled(self._requests, self._case)
        while left or chance.random() < 0.5:
            size = chance.choice((0, 0, 1, 1, 2, 5))
            yield left[:size]
            left = left[size:]


def test_hand_overs_of_any_size_and_order():
    for case in range(100):
        chance = random.Random(case)
        prompts, samples = chance.randint(1, 5), chance.randint(1, 4)

        groups, draws = collect(HandsOver(case), case=case, prompts=prompts, samples=samples)

        check(groups, draws, case=case, samples=samples)


@pytest.fixture
def workers() -> Iterator[RaySampler]:
    connect(ClusterSection(), cpus=2)
    started = [start_worker({"num_cpus": 0}) for _ in range(3)]
    ray.get([worker.start.remote("tests.integration.timed_engine:Timed", SETTINGS) for worker in started])
    names = [f"rollout worker {number}" for number in range(3)]
    yield RaySampler(Workers(actors=started, names=names, timeout_s=120.0))
    ray.shutdown()


def test_workers_of_any_timing(workers: RaySampler):
    """Among the cases: a slow worker, workers without requests, hand-overs after the last completion."""
    for case in range(40):
        chance = random.Random(case)
        prompts, samples = chance.choice((1, 1, 2, 4)), chance.choice((1, 2, 3, 5))

        groups, draws = collect(workers, case=case, prompts=prompts, samples=samples)

        check(groups, draws, case=case, samples=samples)
