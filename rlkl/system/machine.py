"""The resources of this machine, found without torch."""

from __future__ import annotations

import ctypes
import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_NVIDIA_SMI_DEADLINE_S = 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _LARGE = -1, -3, 2**31 - 1
"""glibc's names in malloc.h, and the largest number that mallopt takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Resources of one machine that this process may use."""

    cpus: int
    memory_gib: float
    gpus: tuple[str, ...] = ()
    """One description per NVIDIA GPU: its name, then its memory."""

    @property
    def gpu_memory_gib(self) -> float | None:
        """Memory of the smallest GPU; None if unknown."""
        sizes = [int(size) for gpu in self.gpus for size in re.findall(r"(\d+) MiB", gpu)]
        return min(sizes) / 1024 if sizes else None


def this_machine() -> Machine:
    """Look at this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = cgroup_memory_limit()
    return Machine(
        cpus=usable_cpus(),
        memory_gib=(memory if limit is None else min(memory, limit)) / 2**30,
        gpus=_visible(_nvidia_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")),
    )


def usable_cpus() -> int:
    """Return the cores that this process may use: its CPU affinity, cut to the CPU quotas of its cgroups."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_cpu_quota()
    return cores if quota is None else max(min(cores, int(quota)), 1)


def cgroup_cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the CPUs that the cgroups (v1 and v2) of this process allow; None without a limit.

    ``root``: the folder that holds ``proc`` and ``sys``.
    """
    quotas = []
    for folder in _cgroup_folders(root, "cpu"):
        quota, period = [*_read(folder / "cpu.max").split(), "", ""][:2]
        if not quota:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period) > 0:  # "max" and -1 are no limit
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def cgroup_memory_limit(root: Path = Path("/")) -> int | None:
    """Return the bytes that the cgroups of this process allow; None without a limit. ``root`` as above."""
    limits = []
    for folder in _cgroup_folders(root, "memory"):
        limit = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
        if limit.isdecimal():
            limits.append(int(limit))
    return min(limits, default=None)


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's cgroups and of all their parents, as far as they are mounted here."""
    own = dict(_own_cgroups(root))
    for line in _read(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        if len(left.split()) < 5 or len(right.split()) < 3:
            continue
        mounted, at = left.split()[3:5]
        kind, _, options = right.split()[:3]
        name = "" if kind == "cgroup2" else controller
        if kind not in ("cgroup", "cgroup2") or (kind == "cgroup" and controller not in options.split(",")):
            continue
        inside = own.get(name, "/")
        if mounted != "/":  # a container sees the host's path, but only a part of it is mounted
            inside = inside.removeprefix(mounted) if f"{inside}/".startswith(f"{mounted}/") else "/"
        top = root / at.lstrip("/")
        folder = top / inside.lstrip("/")
        while folder != top:
            yield folder
            folder = folder.parent
        yield top


def _own_cgroups(root: Path) -> Iterator[tuple[str, str]]:
    """Yield controller and path of each cgroup of this process; the controller of cgroup v2 is the empty string."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        yield from ((controller, path) for controller in controllers.split(","))


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def private_folder(name: str, shared: Path) -> Path:
    """Return a folder of this user alone in a folder where every user can make files, and make it if needed.

    Its name can be predicted, so another user may have made it first. Such a folder is left alone, and one with a
    random name takes its place.
    """
    folder = shared / f"{name}-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = folder.lstat()
        is_private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
        if not is_private:
            return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=shared))
    return folder


def _visible(gpus: Mapping[str, str], variable: str | None) -> tuple[str, ...]:
    """Return the descriptions of the GPUs that CUDA_VISIBLE_DEVICES leaves. ``gpus``: description by UUID, in order."""
    if variable is None:
        return tuple(gpus.values())
    found: list[str] = []
    for word in filter(None, (word.strip() for word in variable.split(","))):
        matches = _matching(gpus, word)
        if len(matches) != 1:  # CUDA, too, ignores all from the first one that it does not know
            break
        found += matches
    return tuple(found)


def _matching(gpus: Mapping[str, str], word: str) -> Sequence[str]:
    if word.startswith("MIG-"):  # a slice of a GPU, which nvidia-smi does not list this way
        return [word]
    if word.isdecimal():
        return list(gpus.values())[int(word) : int(word) + 1]
    return [description for uuid, description in gpus.items() if uuid.startswith(word)]


def _nvidia_gpus() -> dict[str, str]:
    """Return a description of each NVIDIA GPU by its UUID."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=uuid,name,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=_NVIDIA_SMI_DEADLINE_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    lines = [line.partition(",") for line in answer.stdout.splitlines() if line.strip()]
    return {uuid.strip(): description.strip() for uuid, _, description in lines}


def keep_freed_memory() -> None:
    """Let the C library keep large freed blocks for the next ones instead of giving them back to the system.

    A learner on a CPU allocates the same large tensors again in each pass. Fresh memory costs a page fault every 4 KiB:
    a tenth of a step. Does nothing if the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_TRIM_THRESHOLD, _LARGE)
