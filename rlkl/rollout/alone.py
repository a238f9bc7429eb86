"""Ask an engine that runs in a process of its own, without Ray. When the process ends, all its memory is free.

The process ends with this one, even if this one is killed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from rlkl.errors import EnvironmentProblem
from rlkl.rollout.engine import EngineSettings, Request, engine_class
from rlkl.system.parent import end_with_parent
from rlkl.types import Completion, Probe

_STDOUT, _STDERR = 1, 2


def generate_alone(
    engine: str, settings: EngineSettings, requests: Sequence[Request], *, threads: int | None = None
) -> list[Completion]:
    """Start an engine, let it sample, and end it; see `Engine.generate`. ``threads``: of the CPU; None: all cores.

    Raises `EnvironmentProblem` if its process ends by itself, and what the engine raises.
    """
    return _ask(engine, settings, "generate", list(requests), threads)


def score_alone(
    engine: str, settings: EngineSettings, probes: Sequence[Probe], *, threads: int | None = None
) -> list[tuple[float, ...]]:
    """Start an engine, let it score, and end it; see `Engine.score` and `generate_alone`."""
    return _ask(engine, settings, "score", list(probes), threads)


def _ask(engine: str, settings: EngineSettings, method: str, asked: list[Any], threads: int | None) -> list[Any]:
    own = {"initializer": end_with_parent, "initargs": (os.getpid(),)}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), **own) as process:
        try:
            return process.submit(_answer, engine, settings, method, asked, threads).result()
        except BrokenProcessPool as error:
            raise EnvironmentProblem(
                f"the process of the engine ({engine}) ended by itself. Its own messages are above; the usual cause is "
                "too little memory. Take a smaller model, fewer tokens, or --engine hf"
            ) from error


def _answer(engine: str, settings: EngineSettings, method: str, asked: list[Any], threads: int | None) -> list[Any]:
    os.dup2(_STDERR, _STDOUT)  # vLLM logs to the standard output, which is for results
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    return getattr(engine_class(engine)(settings), method)(asked)
