"""Mathematical answers compared by math-verify, in processes that can be ended."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reward_models.extraction import boxed
from reward_models.settings import check_choice, check_column, check_number, shorten, takes, text_of
from rlkl.errors import RewardError

_START_S = 300.0
"""Seconds that the import of sympy may take on a busy machine."""
_WORKER = Path(__file__).with_name("math_worker.py")
_LATEX = ("$", "\\boxed", "\\(", "\\[")


@dataclass(kw_only=True, eq=False)
class MathAnswer:
    """1 where math-verify finds the completion's answer equal to the expected one, else 0.

    An answer that takes longer than ``timeout_s``, more than ``memory_mb``, or makes math-verify fail is a
    `RewardError`, never a 0. A completion without an answer is 0. A row whose answer is None abstains.

    The work is done in child processes, one for each thread that scores at the same time; each is kept for the next
    answer and replaced after a failure. So it is safe in any thread, and no answer can block for longer than its limit.
    """

    answer_column: str = "answer"
    """Holds the expected answer, as LaTeX or as plain text: ``\\frac{1}{2}``, ``$0.5$``, ``1/2``."""
    extract: str = "anywhere"
    r"""``anywhere`` (as math-verify finds it) or ``boxed`` (only the last ``\boxed{...}`` counts)."""
    timeout_s: float = 5.0
    memory_mb: int = 2048
    _idle: list[_Worker] = field(default_factory=list, init=False, repr=False)
    _lock: threading.Lock | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check_column(self, "answer_column")
        check_choice(self, "extract", ("anywhere", "boxed"))
        check_number(self, "timeout_s", above=0)
        check_number(self, "memory_mb", low=256, whole=True)
        self._lock = threading.Lock()
        self.__signature__ = takes("completion", self.answer_column)

    def setup(self) -> None:
        """Start the first child process."""
        self._give_back(self._take())

    def close(self) -> None:
        """End the child processes."""
        while self._idle:
            self._idle.pop().end()

    def __call__(self, **arguments: Any) -> float | None:
        expected = arguments[self.answer_column]
        if expected is None:
            return None
        completion = text_of(self, "completion", arguments["completion"])
        answer = completion
        if self.extract == "boxed":
            content = boxed(completion)
            answer = "" if content is None else f"\\boxed{{{content}}}"
        if not answer.strip():
            return 0.0
        return self._judge(_as_latex(str(expected)), answer)

    def _judge(self, gold: str, answer: str) -> float:
        worker = self._take()
        try:
            reply = worker.ask({"gold": gold, "answer": answer, "timeout_s": self.timeout_s}, self.timeout_s)
        except RewardError as error:
            worker.end()
            raise RewardError(f"MathAnswer: {error} (expected {gold!r}, completion {shorten(repr(answer))})") from error
        except BaseException:
            worker.end()  # interrupted in the middle of an answer, which the next question must not be given
            raise
        self._give_back(worker)
        if "no_gold" in reply:
            raise RewardError(
                f"MathAnswer: column '{self.answer_column}' of this row is {shorten(repr(gold))}, in which math-verify "
                "finds no answer; correct the data or use ExactMatch"
            )
        if "error" in reply:
            raise RewardError(
                f"MathAnswer: math-verify raised {reply['error']} (expected {gold!r}, "
                f"completion {shorten(repr(answer))})"
            )
        return float(reply["right"])

    def _take(self) -> _Worker:
        assert self._lock is not None
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.is_alive:
                    return worker
                worker.end()
        return _Worker(memory_mb=self.memory_mb)

    def _give_back(self, worker: _Worker) -> None:
        assert self._lock is not None
        with self._lock:
            self._idle.append(worker)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_idle": [], "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


class _Worker:
    """One child process that runs ``math_worker.py``."""

    def __init__(self, *, memory_mb: int) -> None:
        self._unread = b""
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER), str(memory_mb)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._line(_START_S)
        except RewardError as error:
            self.end()
            raise RewardError(
                f"MathAnswer: its child process did not start ({error}); see that '{sys.executable} -c \"import "
                "math_verify\"' works (pip install math-verify)"
            ) from error

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, question: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Return the reply to one question; raises `RewardError` if there is none in time."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise RewardError(f"the child process has ended with exit code {self._process.wait()}") from error
        return json.loads(self._line(timeout_s))

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:  # a question that it had not read
                continue

    def _line(self, timeout_s: float) -> bytes:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise RewardError(f"no verdict within {timeout_s} s")
            part = os.read(descriptor, 65536)
            if not part:
                raise RewardError(
                    f"the child process ended with exit code {self._process.wait()}: out of memory or time"
                )
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        return line


def _as_latex(expected: str) -> str:
    """Put LaTeX between delimiters: math-verify looks for it only there, and for plain numbers anywhere."""
    return expected if any(mark in expected for mark in _LATEX) else f"${expected}$"
