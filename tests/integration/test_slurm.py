"""`launch/slurm.sbatch` with a stand-in for SLURM: one node trains, is saved at its time limit, and goes on.

Ray's `symmetric-run` refuses to start beside another Ray, and stops every Ray of the machine at its end. So each job
runs in a process namespace of its own.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.integration.runs import DEADLINE_S, free_port, records

ROOT = Path(__file__).resolve().parents[2]
ALONE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"] + (
    [] if os.geteuid() == 0 else ["--map-root-user"]
)
SRUN = """#!/usr/bin/env bash
# Runs the command on this one machine, and notes the options.
while [[ $1 == -* ]]; do echo "$1" >>"$SLURM_LOG"; shift; done
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
if [[ "$1 $2" == "show hostnames" ]]; then echo localhost; else echo "scontrol $*" >>"$SLURM_LOG"; fi
"""


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """The environment of a job of one node."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    foreign = ("RAY_", "SLURM_", "NCCL_", "GLOO_", "WANDB_SERVICE")  # W&B's process of these tests may end first
    own = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    number = f"{os.getpid()}{time.monotonic_ns() % 1000}"
    return own | {
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else Ray replaces a loopback address by the machine's own
        "SLURM_LOG": str(tmp_path / "slurm.log"),
        "SLURM_JOB_ID": number,
        "SLURM_JOB_NAME": "test",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NNODES": "1",
        "SLURM_CPUS_ON_NODE": "2",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "RLKL_PORT": str(free_port()),
        "RLKL_SHM_GIB": "0",
        "RUN_DIR": str(tmp_path / "shared" / "run"),
    }


def submit(job: Mapping[str, str], *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*ALONE, "bash", str(ROOT / "launch" / "slurm.sbatch"), *words],
        env=dict(job),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        printed, _ = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
    return process.returncode, printed


def batch_shell(process: subprocess.Popen[str]) -> int:
    """The process that SLURM signals: the child of `unshare`."""
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


def test_a_job_is_saved_at_its_time_limit_queued_again_and_goes_on(job: dict[str, str]) -> None:
    run_dir, command = Path(job["RUN_DIR"]), ("quickstart", "steps=12", "rollout.engine=hf")
    process = submit(job, *command)
    end = time.monotonic() + DEADLINE_S
    while not (run_dir / "metrics.jsonl").exists() or not records(run_dir):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.02)
    os.kill(batch_shell(process), signal.SIGUSR1)
    code, printed = ended(process)
    assert code == 143, printed
    assert "SIGUSR1, asking the run to save and end" in printed
    done = len(records(run_dir))
    assert 1 <= done < 12
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == [f"step_{done:06}"]
    log = Path(job["SLURM_LOG"]).read_text()
    assert f"scontrol requeue {job['SLURM_JOB_ID']}" in log
    assert "--kill-on-bad-exit=1" in log

    code, printed = ended(submit(job, *command))
    assert code == 0, printed
    assert [record["step"] for record in records(run_dir)] == list(range(1, 13))
    assert (run_dir / "policy" / "config.json").is_file()
    assert Path(job["SLURM_LOG"]).read_text().count("requeue") == 1


def test_what_cannot_work_ends_the_job_before_ray_starts(job: dict[str, str]) -> None:
    code, printed = ended(submit(job | {"RLKL_SHM_GIB": "100000"}, "quickstart"))
    assert code == 1
    assert f"{socket.gethostname()}: /dev/shm has " in printed
    assert "expected 100000 GiB or more (RLKL_SHM_GIB)" in printed
    code, printed = ended(submit(job, "steps=3"))
    assert code == 1
    assert "expected a recipe before section.key=value, not steps=3" in printed
    code, printed = ended(submit(job | {"SLURM_SUBMIT_DIR": "/"}, "quickstart"))
    assert code == 1
    assert "submit from rlkl's root or set RLKL_PROJECT" in printed


def test_a_ray_that_does_not_start_is_no_success(job: dict[str, str]) -> None:
    """`ray symmetric-run` ends with exit code 0 then."""
    with socket.create_server(("127.0.0.1", int(job["RLKL_PORT"]))):
        code, printed = ended(submit(job, "quickstart", "steps=1"))
    assert code == 1, printed
    assert "Ray has not started, as shown above" in printed
