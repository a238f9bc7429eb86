"""Programs that completions hold, run against test cases in a sandbox."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from reward_models.extraction import fenced
from reward_models.sandbox import Limits, Outcome, Sandbox
from reward_models.settings import (
    check_choice,
    check_column,
    check_flags,
    check_number,
    refuse,
    shorten,
    takes,
    text_of,
)
from rlkl.errors import RewardError

_SOLUTION = "solution.py"
_CHECKER = """
import json, os, sys
def check(run=exec, write=os.write, leave=os._exit):
    order = json.loads(sys.stdin.readline())
    test = compile(order["check"], "check.py", "exec")
    word = order.pop("word").encode()
    space = {"__name__": "__main__"}
    with open("solution.py") as solution:
        run(compile(solution.read(), "solution.py", "exec"), space)
    run(test, space)
    sys.stdout.flush()
    write(1, word)
    leave(0)
check()
"""
"""Runs the solution and then the checks. Leaving early or raising is no pass: only here the word is said."""


@dataclass(kw_only=True, eq=False)
class CodeExecution:
    """The share of test cases that the completion's Python program passes, or 1 for all and else 0.

    The program is the last fenced block that says ``python``, ``py`` or nothing; without one the reward is 0. Each case
    runs in a sandbox of its own (see `Sandbox`), so no case sees what another has left. A case is

    - ``{"stdin": text, "stdout": text}``: passed where the program ends with exit code 0 having written that text,
      white space at the end of lines and of the whole apart; or
    - ``{"check": code}`` or just the code, such as ``assert add(1, 2) == 3``: run after the program in the same
      interpreter, passed where neither raises. A program written to deceive can pass any such check: what tells a pass
      from a failure is in that interpreter too, and the program can read it in the frames of its callers. Use ``stdin``
      and ``stdout`` for a policy that is not trusted, such as one in training that may find this out.

    What the program does (crash, exceed a limit, try to get out) fails the case; a failure of the sandbox is a
    `RewardError`. A row whose test cases are None abstains.
    """

    tests_column: str = "tests"
    """Holds a list of cases, or that list as JSON text."""
    score: str = "fraction"
    """``fraction`` or ``all``, which stops at the first case that fails."""
    extract: str = "fenced"
    """``fenced`` or ``whole`` (the whole completion is the program)."""
    timeout_s: float = 10.0
    """Wall time for one case, the start of the sandbox included."""
    cpu_s: int = 10
    memory_mb: int = 512
    disk_mb: int = 64
    processes: int = 16
    output_kb: int = 256
    isolation: str = "namespaces"
    """``namespaces``, or ``process`` where those are refused; the README says what each keeps apart."""
    python: str | None = None
    """Another interpreter for the programs."""
    packages: bool = False
    """Whether programs may import what this environment has installed."""
    _sandbox: Sandbox | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check_column(self, "tests_column")
        check_choice(self, "score", ("fraction", "all"))
        check_choice(self, "extract", ("fenced", "whole"))
        check_choice(self, "isolation", ("namespaces", "process"))
        check_flags(self, "packages")
        check_number(self, "timeout_s", above=0)
        for setting, least in {"cpu_s": 1, "memory_mb": 32, "disk_mb": 1, "processes": 1, "output_kb": 1}.items():
            check_number(self, setting, low=least, whole=True)
        if self.python is not None and (not isinstance(self.python, str) or not self.python.startswith("/")):
            raise refuse(self, "python", "the absolute path of a Python interpreter")
        self.__signature__ = takes("completion", self.tests_column)

    def setup(self) -> None:
        """Check that the sandbox works on this machine.

        Raises:
            RewardInputError: it does not; the message says why and what else could be tried.
        """
        limits = Limits(
            wall_s=self.timeout_s,
            cpu_s=self.cpu_s,
            memory_mb=self.memory_mb,
            file_mb=self.disk_mb,
            disk_mb=self.disk_mb,
            processes=self.processes,
            output_kb=self.output_kb,
        )
        sandbox = Sandbox(limits=limits, isolation=self.isolation, python=self.python, packages=self.packages)
        sandbox.check()
        self._sandbox = sandbox

    def __call__(self, **arguments: Any) -> float | None:
        given = arguments[self.tests_column]
        if given is None:
            return None
        cases = self._cases(given)
        completion = text_of(self, "completion", arguments["completion"])
        program = completion if self.extract == "whole" else fenced(completion, ("python", "python3", "py"))
        if program is None or not program.strip():
            return 0.0
        passed = 0
        for case in cases:
            if self._passes(program, case):
                passed += 1
            elif self.score == "all":
                return 0.0
        return passed / len(cases)

    def _passes(self, program: str, case: dict[str, str]) -> bool:
        if self._sandbox is None:
            self.setup()
        assert self._sandbox is not None
        files = {_SOLUTION: program}
        if "check" in case:
            word = secrets.token_hex(16)
            order = json.dumps({"check": case["check"], "word": word})
            outcome = self._sandbox.run(["-c", _CHECKER], files=files, stdin=order + "\n")
            return _went_well(outcome) and outcome.stdout.endswith(word)
        outcome = self._sandbox.run([_SOLUTION], files=files, stdin=case["stdin"])
        return _went_well(outcome) and _lines(outcome.stdout) == _lines(case["stdout"])

    def _cases(self, given: Any) -> list[dict[str, str]]:
        try:
            cases = json.loads(given) if isinstance(given, str) else given
        except ValueError as error:
            raise self._wrong_cases(given) from error
        if not isinstance(cases, Sequence) or isinstance(cases, str) or not cases:
            raise self._wrong_cases(given)
        return [self._case(case, given) for case in cases]

    def _case(self, case: Any, given: Any) -> dict[str, str]:
        if isinstance(case, str):
            return {"check": case}
        if isinstance(case, dict):
            filled = {
                name: value for name, value in case.items() if value is not None
            }  # tables fill what lacks with None
            if filled.keys() in ({"check"}, {"stdin", "stdout"}) and all(isinstance(v, str) for v in filled.values()):
                return filled
        raise self._wrong_cases(given)

    def _wrong_cases(self, given: Any) -> RewardError:
        return RewardError(
            f"CodeExecution: column '{self.tests_column}' of this row is {shorten(repr(given))}; expected a list, not "
            'empty, of {"stdin": ..., "stdout": ...}, {"check": "assert ..."} or "assert ...", or it as JSON text'
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sandbox": None}


def _went_well(outcome: Outcome) -> bool:
    return outcome.exit_code == 0 and not outcome.stopped


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
