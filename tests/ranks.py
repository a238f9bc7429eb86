"""Run a function in several processes, each of which can be a rank. The processes share one import of the package."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch._C._distributed_c10d import FileStore

from rlkl.learner.ranks import LOOPBACK, Ranks, Rendezvous, open_store

TIMEOUT_S = 240.0


def join(folder: Path, name: str, rank: int, size: int) -> Ranks:
    """Join ``size`` ranks that meet under ``name``; rank 0 leaves the port of its store in ``folder``."""
    note = FileStore(str(folder / f"meeting-{name}"), size)
    note.set_timeout(timedelta(seconds=TIMEOUT_S))
    store = None
    if rank == 0:
        store = open_store(LOOPBACK, size=size, timeout_s=TIMEOUT_S)
        note.set("port", str(store.port))
    port = int(note.get("port"))
    place = Rendezvous(host=LOOPBACK, port=port, rank=rank, size=size, timeout_s=TIMEOUT_S)
    return Ranks.join(place, torch.device("cpu"), store)


def run_processes(function: Callable[..., None], count: int, folder: Path, *arguments: Any) -> None:
    """Call ``function(number, folder, *arguments)`` in ``count`` processes; fails with the traceback of the first."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rlkl.learner.learner", "tests.models", "transformers.models.qwen3.modeling_qwen3"])
    processes = [
        context.Process(target=_call, args=(function, number, folder, *arguments), daemon=True)
        for number in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
    problems = [path.read_text() for path in sorted(folder.glob("*.problem"))]
    assert not problems, "\n".join(problems)
    assert [process.exitcode for process in processes] == [0] * count


def _call(function: Callable[..., None], number: int, folder: Path, *arguments: Any) -> None:
    torch.set_num_threads(1)
    try:
        function(number, folder, *arguments)
    except BaseException:
        (folder / f"{number}.problem").write_text(f"process {number}:\n{traceback.format_exc()}")
        raise
