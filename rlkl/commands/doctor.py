"""Check versions, hardware, and the parts of rlkl that work here. Heavy imports run in processes of their own."""

from __future__ import annotations

import netrc
import os
import re
import shutil
import socket
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table

from rlkl.errors import InputError
from rlkl.system.machine import Machine, this_machine

IMPORT_DEADLINE_S = 180
_CONNECT_DEADLINE_S = 5
_WANTED_DISK_GIB = 2
_WANTED_SHM_GIB = 1
_REINSTALL = "run make install"

PROBES = {
    "torch and GPUs": "import torch; print('works, finds', torch.cuda.device_count(), 'CUDA GPUs')",
    "Ray": "import ray; print('works')",
    "engine hf": "import rlkl.rollout.hf_engine; print('works')",
    "engine vllm": (
        "import rlkl.rollout.vllm_engine, vllm; from vllm import LLM; from vllm.platforms import current_platform\n"
        "current_platform.import_kernels(); import torch\n"
        "if current_platform.is_cpu() and not hasattr(torch.ops._C, 'init_cpu_memory_env'):\n"
        "    raise ImportError('its kernels for CPUs do not load; is libnuma there (apt-get install libnuma1)?')\n"
        "sleeps = current_platform.is_sleep_mode_available()\n"
        "print('works', '' if sleeps else ' (rollout.placement=colocated frees no memory here)', sep='')"
    ),
    "update rules": (
        "from importlib import import_module; from rlkl.updates import RULES\n"
        "for home in RULES.values(): getattr(import_module(home.split(':')[0]), home.split(':')[1])\n"
        "print(', '.join(RULES))"
    ),
}
"""The code of each probe: an import, then a print."""

_REMEDY = {"engine vllm": "pip install 'rlkl[cpu]' (or rlkl[cuda] with an NVIDIA GPU), or set rollout.engine=hf"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the report."""

    name: str
    status: Literal["ok", "note", "missing", "wrong"]
    detail: str
    remedy: str = ""

    @property
    def blocks(self) -> bool:
        """Whether a run cannot start, or cannot be trusted."""
        return self.status in ("missing", "wrong")


def run(options: Namespace) -> int:
    """Print the report; return 1 if the quickstart cannot run here, else 0. ``--cluster``: report on a Ray cluster."""
    if options.cluster:
        from rlkl.commands import doctor_cluster

        return doctor_cluster.run(options)
    given = [name for name in ("address", "run_dir", "mib") if getattr(options, name) is not None]
    if given:
        raise InputError(f"--{given[0].replace('_', '-')} goes with --cluster: rlkl doctor --cluster ...")
    checks = examine()
    show(checks)
    return 1 if any(check.blocks for check in checks) else 0


def examine() -> list[Check]:
    """Run every check. The slow ones, which import torch or vllm, run in parallel."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        probes = [pool.submit(probe, name, code) for name, code in PROBES.items()]
        quick = [
            _python(),
            *check_versions(requires("rlkl") or [] if _is_installed("rlkl") else []),
            *_hardware(this_machine()),
            *_room(),
            check_wandb(os.environ, Path.home() / ".netrc"),
            check_ray_address(os.environ.get("RAY_ADDRESS")),
        ]
        return quick + [pending.result() for pending in probes]


def show(checks: list[Check]) -> None:
    """Print the report and its verdict."""
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 140)
    console.print(table_of(checks))
    blocking = [check.name for check in checks if check.blocks]
    console.print(
        f"The quickstart cannot run here yet: {', '.join(blocking)}" if blocking else "The quickstart can run here"
    )


def table_of(checks: list[Check]) -> Table:
    """Return the checks as a table with a line for each."""
    table = Table("", "what", "found", "what to do", box=None, pad_edge=False)
    for check in checks:
        table.add_row(check.status, check.name, check.detail, check.remedy)
    return table


def check_versions(requirements: list[str]) -> Iterator[Check]:
    """Compare what is installed with the ranges of the project; ``requirements`` as `importlib.metadata` gives them."""
    if not requirements:
        yield Check(name="rlkl", status="note", detail="not installed, versions not compared", remedy=_REINSTALL)
    for requirement in map(Requirement, requirements):
        extras = re.findall(r'extra == "([\w-]+)"', str(requirement.marker))
        if not _is_installed(requirement.name):
            if not extras:
                yield Check(
                    name=requirement.name, status="missing", detail=f"wanted {requirement.specifier}", remedy=_REINSTALL
                )
            continue
        if extras and requirement.name == "torch":  # its range is checked as a plain requirement
            continue
        found = version(requirement.name)
        fits = requirement.specifier.contains(found, prereleases=True)
        yield Check(
            name=requirement.name,
            status="ok" if fits else "note",
            detail=found if fits else f"{found}, tested with {requirement.specifier}",
            remedy="" if fits else _REINSTALL,
        )


def probe(name: str, code: str, deadline_s: float = IMPORT_DEADLINE_S) -> Check:
    """Run ``code`` in a Python of its own. The detail is the last line that it prints, or that its error ends with."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    remedy = _REMEDY.get(name, _REINSTALL)
    try:
        answer = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=deadline_s, env=environment
        )
    except subprocess.TimeoutExpired:
        return Check(name=name, status="missing", detail=f"no answer within {deadline_s:g} s", remedy=remedy)
    lines = (answer.stdout if answer.returncode == 0 else answer.stderr).strip().splitlines() or ["no output"]
    if answer.returncode == 0:
        return Check(name=name, status="ok", detail=lines[-1])
    needed = name != "engine hf"
    return Check(name=name, status="missing" if needed else "note", detail=lines[-1], remedy=remedy)


def check_wandb(environment: Mapping[str, str], netrc_file: Path) -> Check:
    """Return whether ``tracking.wandb: online`` would find a key."""
    has_key = bool(environment.get("WANDB_API_KEY"))
    if not has_key and netrc_file.is_file():
        try:
            has_key = netrc.netrc(str(netrc_file)).authenticators("api.wandb.ai") is not None
        except netrc.NetrcParseError:
            return Check(name="W&B", status="note", detail=f"{netrc_file} cannot be read; offline works")
    if has_key:
        return Check(name="W&B", status="ok", detail="a key is there: offline and online work")
    return Check(name="W&B", status="ok", detail="no key: offline works", remedy="for online: wandb login")


def check_ray_address(address: str | None) -> Check:
    """Return whether the cluster that RAY_ADDRESS names answers."""
    if not address:
        return Check(name="Ray cluster", status="ok", detail="RAY_ADDRESS is not set: rlkl train starts its own Ray")
    host, _, port = address.rpartition("://")[2].rstrip("/").rpartition(":")
    if not host or not port.isdigit():
        return Check(name="Ray cluster", status="ok", detail=f"RAY_ADDRESS = {address}")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_DEADLINE_S).close()
    except OSError as error:
        remedy = "launch/local_cluster.sh start, or unset RAY_ADDRESS"
        return Check(name="Ray cluster", status="missing", detail=f"{address} does not answer ({error})", remedy=remedy)
    return Check(name="Ray cluster", status="ok", detail=f"{address} answers")


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return Check(name="Python", status="ok", detail=f"{found} at {sys.executable}")


def _hardware(machine: Machine) -> Iterator[Check]:
    yield Check(name="CPU", status="ok", detail=f"{machine.cpus} cores, {machine.memory_gib:.1f} GiB of memory")
    yield Check(name="GPU", status="ok", detail="; ".join(machine.gpus) or "no NVIDIA GPU: everything runs on the CPU")


def _room() -> Iterator[Check]:
    for name, folder, wanted, remedy in (
        ("disk", Path.cwd(), _WANTED_DISK_GIB, "free some, or set run.dir to another disk"),
        ("shared memory", Path("/dev/shm"), _WANTED_SHM_GIB, "in a container: docker run --shm-size=2g"),
    ):
        if folder.is_dir():
            free = shutil.disk_usage(folder).free / 2**30
            enough = free >= wanted
            yield Check(
                name=name,
                status="ok" if enough else "note",
                detail=f"{free:.1f} GiB free in {folder}",
                remedy="" if enough else remedy,
            )
