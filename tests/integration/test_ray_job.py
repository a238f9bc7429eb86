"""The scripts of launch/, for real: a cluster, a job that trains, a job that is refused, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 600


@pytest.fixture
def environment() -> Iterator[Mapping[str, str]]:
    """With a cluster folder of a short path, for Ray's sockets; whatever a test leaves running is ended."""
    folder = tempfile.mkdtemp(prefix="rlkl-", dir="/tmp")
    foreign = ("RAY_", "WANDB_SERVICE")  # left by other tests of this process
    values = {
        **{name: value for name, value in os.environ.items() if not name.startswith(foreign)},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RLKL_CLUSTER_DIR": folder,
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
    }
    try:
        yield values
    finally:
        launch("local_cluster.sh", "stop", environment=values, folder=ROOT)
        shutil.rmtree(folder, ignore_errors=True)


def launch(
    script: str, *arguments: str, environment: Mapping[str, str], folder: Path
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "launch" / script, *arguments],
        env=dict(environment),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )


def processes_of(cluster: str) -> list[str]:
    """Command lines of living processes that inherited the cluster's mark or name its folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            marked = f"RLKL_LOCAL_CLUSTER={cluster}\0".encode() in (process / "environ").read_bytes()
        except OSError:  # it ended meanwhile, or is another user's
            continue
        if command and (marked or cluster.encode() in command):
            found.append(command.replace(b"\0", b" ").decode())
    return found


def test_job_trains_on_the_local_cluster_and_nothing_is_left(environment: Mapping[str, str], tmp_path: Path) -> None:
    cluster = environment["RLKL_CLUSTER_DIR"]
    started = launch("local_cluster.sh", "start", "--num-cpus=2", environment=environment, folder=ROOT)
    assert started.returncode == 0, started.stderr
    assert "export RAY_ADDRESS=127.0.0.1:" in started.stdout
    assert processes_of(cluster)

    refused = launch("submit.sh", "quickstart", "lr=3", environment=environment, folder=tmp_path)
    assert refused.returncode == 2
    assert "lr: unknown key. Did you mean learner.lr?" in refused.stdout

    job = launch("submit.sh", "quickstart", "steps=2", "run.name=job", environment=environment, folder=tmp_path)
    assert job.returncode == 0, job.stdout + job.stderr
    run = tmp_path / "runs" / "job"
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    assert (run / "policy" / "config.json").is_file()
    assert (run / "checkpoints" / "step_000002").is_dir()
    assert list((run / "wandb").glob("offline-run-*"))

    stopped = launch("local_cluster.sh", "stop", environment=environment, folder=ROOT)
    assert stopped.returncode == 0, stopped.stderr
    assert processes_of(cluster) == []
    assert launch("local_cluster.sh", "status", environment=environment, folder=ROOT).returncode == 1


def test_submit_without_a_cluster_says_how_to_get_one(environment: Mapping[str, str]) -> None:
    answer = launch("submit.sh", "quickstart", environment=environment, folder=ROOT)
    assert answer.returncode == 1
    assert "run launch/local_cluster.sh start, or set RAY_ADDRESS" in answer.stderr
