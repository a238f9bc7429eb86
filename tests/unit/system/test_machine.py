"""CPU quotas and memory limits of containers, visible GPUs, and folders that another user could have made first."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from rlkl.system import machine
from rlkl.system.machine import (
    Machine,
    cgroup_cpu_quota,
    cgroup_memory_limit,
    private_folder,
    this_machine,
    usable_cpus,
)

V1 = (
    "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)
V1_IN_A_CONTAINER = V1.replace("0:30 / ", "0:30 /docker/ab ").replace("0:32 / ", "0:32 /docker/ab ")
V2 = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "cpus", "memory"),
    [
        pytest.param({}, None, None, id="no cgroups"),
        pytest.param(
            {
                "proc/self/mountinfo": V2,
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/cpu.max": "150000 100000\n",
                "sys/fs/cgroup/memory.max": "1073741824\n",
            },
            1.5,
            2**30,
            id="v2 in a container",
        ),
        pytest.param(
            {
                "proc/self/mountinfo": V2,
                "proc/self/cgroup": "0::/slice/job\n",
                "sys/fs/cgroup/slice/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/slice/memory.max": "5\n",
                "sys/fs/cgroup/slice/job/cpu.max": "max 100000\n",
                "sys/fs/cgroup/slice/job/memory.max": "max\n",
            },
            4.0,
            5,
            id="v2, limited by a parent",
        ),
        pytest.param(
            {
                "proc/self/mountinfo": V1,
                "proc/self/cgroup": "2:memory:/job\n1:cpu,cpuacct:/job\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "7\n",
            },
            2.5,
            7,
            id="v1",
        ),
        pytest.param(
            {
                "proc/self/mountinfo": V1_IN_A_CONTAINER,
                "proc/self/cgroup": "2:memory:/docker/ab\n1:cpu,cpuacct:/docker/ab/inner\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/inner/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu,cpuacct/inner/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9\n",
            },
            0.5,
            9,
            id="v1 in a container",
        ),
    ],
)
def test_limits_of_cgroups(tmp_path: Path, files: dict[str, str], cpus: float | None, memory: int | None):
    root = tree(tmp_path, files)
    assert cgroup_cpu_quota(root) == cpus
    assert cgroup_memory_limit(root) == memory


@pytest.mark.parametrize(("quota", "cpus"), [(None, 8), (0.5, 1), (2.5, 2), (64.0, 8)])
def test_a_quota_cuts_the_cores_that_the_affinity_leaves(
    quota: float | None, cpus: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(machine, "cgroup_cpu_quota", lambda: quota)
    assert usable_cpus() == cpus
    assert this_machine().cpus == cpus


@pytest.mark.parametrize(
    ("variable", "seen"),
    [
        (None, ("A, 10 MiB", "B, 20 MiB", "C, 30 MiB")),
        ("2,0", ("C, 30 MiB", "A, 10 MiB")),
        ("", ()),
        ("-1", ()),
        ("0,9,1", ("A, 10 MiB",)),
        ("GPU-bb", ("B, 20 MiB",)),
        ("MIG-x,1", ("MIG-x", "B, 20 MiB")),
    ],
)
def test_hidden_gpus_do_not_count(
    variable: str | None, seen: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf 'GPU-aa, A, 10 MiB\\nGPU-bb, B, 20 MiB\\nGPU-cc, C, 30 MiB\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    if variable is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert this_machine().gpus == seen


def test_memory_of_the_smallest_gpu():
    gpus = ("NVIDIA H100 80GB HBM3, 81920 MiB", "Tesla T4, 15360 MiB")
    assert Machine(cpus=1, memory_gib=1.0, gpus=gpus).gpu_memory_gib == 15.0
    assert Machine(cpus=1, memory_gib=1.0, gpus=("H200",)).gpu_memory_gib is None


def test_a_private_folder_is_made_once_and_used_again(tmp_path: Path):
    folder = private_folder("rlkl-x", tmp_path)
    assert folder == tmp_path / f"rlkl-x-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert private_folder("rlkl-x", tmp_path) == folder


@pytest.mark.parametrize("kind", ["link", "open to others", "a file"])
def test_a_folder_that_another_user_may_have_made_is_not_used(kind: str, tmp_path: Path):
    trap = tmp_path / f"rlkl-x-{os.getuid()}"
    if kind == "link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        trap.symlink_to(tmp_path / "theirs")
    elif kind == "a file":
        trap.write_text("")
    else:
        trap.mkdir()
        trap.chmod(0o777)
    folder = private_folder("rlkl-x", tmp_path)
    assert folder != trap
    assert stat.S_IMODE(folder.lstat().st_mode) == 0o700
