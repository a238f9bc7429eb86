"""Sampling on rollout workers, each a Ray actor with an engine of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from rlkl.actors.calls import stream_all
from rlkl.rollout.collect import share_out
from rlkl.rollout.engine import Request
from rlkl.types import Completion


class RaySampler:
    """Shares requests out over all workers and merges their streams."""

    def __init__(self, workers: Sequence[Any], names: Sequence[str], *, timeout_s: float) -> None:
        self._workers, self._names, self._timeout_s = workers, names, timeout_s
        self._streams: list[Any] = []
        self._starts: list[int] = []

    def submit(self, requests: Sequence[Request]) -> None:
        """Start sampling one completion a request, in nearly equal parts on all workers.

        `finished` must have been called for the requests before.
        """
        assert not self._streams, "earlier requests have not been collected"
        parts = share_out(requests, len(self._workers))
        self._starts = list(accumulate((len(part) for part in parts), initial=0))
        self._streams = [worker.stream.remote(part) for worker, part in zip(self._workers, parts, strict=True)]

    def finished(self) -> Iterator[list[tuple[int, Completion]]]:
        """Yield the completions as they finish, with their requests' numbers; all of them have one deadline."""
        streams, starts, self._streams = self._streams, self._starts, []
        arriving = stream_all(streams, who=self._names, what="generate", timeout_s=self._timeout_s)
        for worker, finished in arriving:
            yield [(starts[worker] + number, completion) for number, completion in finished]
