"""A sampler over one rollout worker in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlkl.actors.shells import RolloutWorker
from rlkl.rollout.engine import Request
from rlkl.types import Completion


class LocalSampler:
    """See `rlkl.training.hands.Sampler`."""

    def __init__(self, worker: RolloutWorker) -> None:
        self._worker = worker
        self._left: set[int] = set()

    def submit(self, requests: Sequence[Request]) -> None:
        self.submit_together(requests, first=0)

    def submit_together(self, requests: Sequence[Request], *, first: int) -> None:
        numbered = list(enumerate(requests, start=first))
        self._left |= {number for number, _ in numbered}
        self._worker.submit(numbered)

    def finished(self) -> Iterator[list[tuple[int, Completion]]]:
        while self._left:
            finished = list(self._worker.finished(0.1).finished)
            self._left -= {number for number, _ in finished}
            yield finished

    def forget(self) -> None:
        self._worker.forget()

    @property
    def idle_s(self) -> float:
        return self._worker.finished(0.0).idle_s
