"""An actor that takes the place of the learner's worker. It imports no torch, so that it starts soon."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from rlkl.errors import LearnerError


class Member:
    """One rank."""

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def open_store(self, host: str, size: int, timeout_s: float) -> int:
        return 1234

    def log_file(self) -> str:
        return os.path.realpath("/proc/self/fd/2")

    def start(self, spec: Any, place: Any) -> tuple[str, int, int, int]:
        return place.host, place.port, place.rank, place.size

    def add(self, left: int, right: int) -> tuple[int, int]:
        return self._rank, left + right

    def fail(self) -> None:
        raise LearnerError("the gradient is not finite")

    def fail_alone(self) -> None:
        if self._rank == 1:
            raise LearnerError("no memory")
        time.sleep(600)

    def end(self) -> None:
        if self._rank == 1:
            print("the last words", file=sys.stderr, flush=True)
            os._exit(3)
        time.sleep(600)
