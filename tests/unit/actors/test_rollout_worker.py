from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlkl.actors.shells import RolloutWorker
from rlkl.errors import RolloutError
from rlkl.rollout.engine import EngineSettings, Request
from rlkl.types import Probe
from rlkl.weights import HostMemoryChannel, Probes, WeightPackage

ASKED = [(0, Request(prompt_token_ids=(1,), seed=0))]


def settings(*, sleeps: bool) -> EngineSettings:
    return EngineSettings(
        model_path="unused",
        dtype="float32",
        max_prompt_tokens=8,
        max_new_tokens=8,
        temperature=1.0,
        stop_token_ids=(0,),
        memory_fraction=0.5,
        kv_cache_gib=1,
        sleeps=sleeps,
    )


def started(*, sleeps: bool) -> RolloutWorker:
    worker = RolloutWorker()
    worker.start("tests.unit.rollout.test_sleeping:Memory", settings(sleeps=sleeps))
    return worker


def published(version: int) -> WeightPackage:
    return HostMemoryChannel().pack([("w", torch.ones(2))], version)


def sample(worker: RolloutWorker) -> Any:
    worker.submit(ASKED)
    ((_, completion),) = worker.finished(10.0).finished
    return completion


@pytest.mark.parametrize(
    "call", [sample, lambda worker: worker.score([]), lambda worker: worker.receive(published(1), Probes())]
)
def test_an_engine_that_sleeps_answers_nothing(call: Callable[[RolloutWorker], Any]):
    worker = started(sleeps=True)
    worker.sleep()
    with pytest.raises(RolloutError, match="asleep"):
        call(worker)


def test_a_worker_whose_engine_sleeps_samples_only_after_a_publish():
    waiting = started(sleeps=True)
    waiting.sleep()
    waiting.wake_weights()
    with pytest.raises(RolloutError, match="waiting for weights was asked to sample"):
        sample(waiting)

    worker = started(sleeps=True)
    worker.sleep()
    worker.wake_weights()
    receipt = worker.receive(published(7), Probes(current=[Probe(token_ids=(1, 2))]))
    assert (receipt.version, receipt.scores.current) == (7, [(0.0,)])
    assert sample(worker).weights_version == 7


def test_a_worker_whose_engine_cannot_sleep_does_not_start_in_turns():
    worker = RolloutWorker()
    worker.start("tests.integration.timed_engine:Timed", settings(sleeps=False))
    with pytest.raises(RolloutError, match=r"timed_engine:Timed has no methods sleep and wake"):
        worker.start("tests.integration.timed_engine:Timed", settings(sleeps=True))
