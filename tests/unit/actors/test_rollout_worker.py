from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from rlkl.actors import shells
from rlkl.actors.shells import RolloutWorker
from rlkl.rollout.engine import Request
from rlkl.types import Completion


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
