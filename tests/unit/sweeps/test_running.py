"""Children of a sweep, as real processes, and how many fit on a machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from rlkl.errors import InputError
from rlkl.recipe.io import load_recipe
from rlkl.sweeps.child import Child, open_log
from rlkl.sweeps.making import load_sweep, make_plan
from rlkl.sweeps.running import default_jobs, places_of, threads_of
from rlkl.system.machine import Machine

T = TypeVar("T")
SLEEPER = """
import subprocess, sys, time
print(subprocess.Popen(["sleep", "600"]).pid, file=sys.stderr, flush=True)
time.sleep(600)
"""
"""A child that starts a process of its own, as Ray and engines do, which outlives it."""
PARENT = """
import sys, time
from pathlib import Path
from rlkl.sweeps import child
sys.executable = str(Path(sys.argv[1]).with_name("sleeper"))
print(child.Child([], child.open_log(Path(sys.argv[1])), stdout=None, env={})._process.pid, flush=True)
time.sleep(600)
"""


def test_a_child_writes_its_log_and_its_output(tmp_path: Path) -> None:
    log = open_log(tmp_path / "a" / "run.log")
    assert log is not None
    child = Child(["keys", "learner.lr"], log, stdout=tmp_path / "out", env={"RLKL_TEST": "1"})
    assert child.wait() == 0
    assert "learner.lr" in (tmp_path / "out").read_text()
    assert (tmp_path / "a" / "run.log").read_text() == "$ rlkl keys learner.lr\n"


def test_the_log_of_a_killed_sweeps_child_stays_locked(tmp_path: Path) -> None:
    """The kernel keeps the lock as long as the child lives although its parent is dead, and no longer than it lives."""
    path, sleeper = tmp_path / "run.log", tmp_path / "sleeper"
    sleeper.write_text(f"#!{sys.executable}\n{SLEEPER}")
    sleeper.chmod(0o755)
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    orphan = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert open_log(path) is None
    own = int(wait_for(lambda: path.read_text().partition("\n")[2].strip()))
    os.kill(orphan, signal.SIGKILL)
    log = wait_for(lambda: open_log(path))
    log.close()
    os.kill(own, signal.SIGKILL)


def wait_for(found: Callable[[], T | None]) -> T:
    end = time.monotonic() + 60
    while not (one := found()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return one


def test_a_machine_holds_as_many_runs_as_its_cores_and_memory_allow() -> None:
    plan = make_plan(load_sweep(["quickstart", "seeds=2", "learner.threads=1", "rollout.threads=1"]))
    assert default_jobs(plan.arms, Machine(cpus=1, memory_gib=64.0)) == 1
    assert default_jobs(plan.arms, Machine(cpus=8, memory_gib=640.0)) == 8
    few = default_jobs(plan.arms, Machine(cpus=8, memory_gib=10.0))
    assert 1 < few < 8
    assert default_jobs(plan.arms, Machine(cpus=8, memory_gib=0.5)) == 1
    assert default_jobs(plan.arms, Machine(cpus=64, memory_gib=640.0, gpus=("H100, 81559 MiB",) * 4)) == 1


def test_threads_of_a_run() -> None:
    machine = Machine(cpus=8, memory_gib=64.0)
    assert threads_of(load_recipe("quickstart"), machine) == 1
    assert threads_of(load_recipe("quickstart", "rollout.threads=3", "rollout.workers=2"), machine) == 6
    assert threads_of(load_recipe("quickstart", "rollout.schedule=one_step_off"), machine) == 2
    assert threads_of(load_recipe("quickstart", "learner.threads=null"), machine) == 8


def test_jobs_on_gpus_have_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    machine = Machine(cpus=64, memory_gib=640.0, gpus=("H100, 81559 MiB",) * 4)
    assert places_of(1, machine) == [{}]
    assert places_of(2, machine) == [{"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,3"}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert places_of(2, machine)[1] == {"CUDA_VISIBLE_DEVICES": "6,7"}
    with pytest.raises(InputError, match="this machine has 4 GPU"):
        places_of(5, machine)
    assert places_of(2, Machine(cpus=2, memory_gib=8.0)) == [{}, {}]
