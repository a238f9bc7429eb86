"""The process in which `MathAnswer` lets math-verify work: one JSON object a line in, one a line out.

It imports nothing of this project, so that it starts as a plain script. ``signal.alarm`` is never used: whoever asks
waits as long as it likes and then ends this process. Should the asker be gone, the limit on CPU time ends it.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
from typing import Any

SECONDS_BEYOND = 5
"""CPU seconds that a question may take beyond its limit before the kernel ends this process."""


def serve() -> None:
    """Answer questions until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints does not get between the answers
    logging.disable(logging.WARNING)  # math-verify warns that its own time limit is off, which is on purpose here
    import math_verify

    memory = int(sys.argv[1]) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    _tell(answers, {"ready": math_verify.__name__})
    for line in sys.stdin:
        question = json.loads(line)
        _limit_cpu(question["timeout_s"])
        _tell(answers, _answer(question))


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    import math_verify

    def parsed(text: str) -> list[Any]:
        return math_verify.parse(text, parsing_timeout=None, raise_on_error=True)  # pyright: ignore[reportArgumentType]

    try:
        gold = parsed(question["gold"])
        if not gold:
            return {"no_gold": True}
        answer = parsed(question["answer"])
        verdict = math_verify.verify(gold, answer, timeout_seconds=None, raise_on_error=True)
    except Exception as error:  # told to the asker, which raises it
        if isinstance(error, MemoryError):
            raise  # ends this process: what it holds is not to be trusted any more
        return {"error": f"{type(error).__name__}: {error}"[:1000]}
    return {"right": bool(verdict)}


def _limit_cpu(seconds: float) -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(usage.ru_utime + usage.ru_stime + seconds) + SECONDS_BEYOND
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


def _tell(answers: Any, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    serve()
