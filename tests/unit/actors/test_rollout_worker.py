from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from rlkl.actors import shells
from rlkl.actors.shells import RolloutWorker
from rlkl.errors import RolloutError
from rlkl.rollout.engine import EngineSettings, Request
from rlkl.types import Completion, Probe
from rlkl.weights import HostMemoryChannel, Probes, WeightPackage


class SlowEngine:
    """Finishes one request every ``pause_s`` seconds of a clock that the test turns."""

    def __init__(self, clock: list[float], pause_s: float) -> None:
        self._clock, self._pause_s = clock, pause_s

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        for number in range(len(requests)):
            self._clock[0] += self._pause_s
            yield number, Completion(token_ids=(number,), logprobs=(-1.0,), finish_reason="stop")


def parts_of(requests: int, *, pause_s: float, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    clock = [0.0]
    monkeypatch.setattr(shells.time, "monotonic", lambda: clock[0])
    worker: Any = RolloutWorker()
    worker._engine = SlowEngine(clock, pause_s)
    asked = [Request(prompt_token_ids=(1,), seed=number) for number in range(requests)]
    return [[number for number, _ in part] for part in worker.stream(asked)]


@pytest.mark.parametrize(("requests", "pause_s"), [(3, 1.0), (3, 0.001), (1, 1.0), (0, 1.0)])
def test_no_part_is_empty_and_none_is_lost(requests: int, pause_s: float, monkeypatch: pytest.MonkeyPatch):
    parts = parts_of(requests, pause_s=pause_s, monkeypatch=monkeypatch)

    assert all(parts)
    assert [number for part in parts for number in part] == list(range(requests))


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


def published(version: int) -> WeightPackage:
    return HostMemoryChannel().pack([("w", torch.ones(2))], version)


def test_a_worker_whose_engine_sleeps_samples_only_after_a_publish():
    worker = RolloutWorker()
    worker.start("tests.unit.rollout.test_sleeping:Memory", settings(sleeps=True))
    asked = [Request(prompt_token_ids=(1,), seed=0)]
    worker.sleep()
    for call in (
        lambda: list(worker.stream(asked)),
        lambda: worker.score([]),
        lambda: worker.receive(published(1), Probes()),
    ):
        with pytest.raises(RolloutError, match="asleep"):
            call()
    worker.wake_weights()
    with pytest.raises(RolloutError, match="waiting for weights was asked to sample"):
        list(worker.stream(asked))

    receipt = worker.receive(published(7), Probes(current=[Probe(token_ids=(1, 2))]))
    assert (receipt.version, receipt.scores.current) == (7, [(0.0,)])
    ((_, completion),) = next(worker.stream(asked))
    assert completion.weights_version == 7


def test_a_worker_whose_engine_cannot_sleep_does_not_start_in_turns():
    worker = RolloutWorker()
    worker.start("tests.integration.timed_engine:Timed", settings(sleeps=False))
    with pytest.raises(RolloutError, match=r"timed_engine:Timed has no methods sleep and wake"):
        worker.start("tests.integration.timed_engine:Timed", settings(sleeps=True))
