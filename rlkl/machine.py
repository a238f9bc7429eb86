"""What this machine has, found without torch."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

_NVIDIA_SMI_DEADLINE_S = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Resources of one machine."""

    cpus: int
    """Cores this process may use."""
    memory_gib: float
    gpus: tuple[str, ...] = ()
    """One description per NVIDIA GPU."""


def this_machine() -> Machine:
    """Look at this machine."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(cpus=cpus, memory_gib=memory / 2**30, gpus=_nvidia_gpus())


def _nvidia_gpus() -> tuple[str, ...]:
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=_NVIDIA_SMI_DEADLINE_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in answer.stdout.splitlines() if line.strip())
