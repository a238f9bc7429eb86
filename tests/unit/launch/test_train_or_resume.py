"""`launch/train_or_resume.sh`: which folder, and a new run or an old one. A stand-in for rlkl prints its words."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "launch" / "train_or_resume.sh"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "rlkl").write_text('#!/bin/sh\necho "$@"\nexit 7\n')
    (folder / "rlkl").chmod(0o755)
    return folder


def call(programs: Path, *words: str, wait_s: int = 1) -> subprocess.CompletedProcess[str]:
    path = f"{programs}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", SCRIPT, *words],
        env={**os.environ, "PATH": path, "RLKL_LOCK_WAIT_S": str(wait_s)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def make_run(folder: Path, *, steps: int, checkpoint: bool = False) -> Path:
    folder.mkdir()
    (folder / "recipe.yaml").write_text("steps: 3\n")
    (folder / "metrics.jsonl").write_text('{"step": 1}\n' * steps)
    if checkpoint:
        (folder / "checkpoints" / "step_000001").mkdir(parents=True)
    return folder


def test_a_folder_that_is_not_there_gets_a_new_run(programs: Path, tmp_path: Path) -> None:
    answer = call(programs, f"{tmp_path}/run", "quickstart", "steps=3")
    assert answer.stdout == f"train quickstart run.dir={tmp_path}/run steps=3\n"
    assert answer.returncode == 7


def test_a_run_that_never_stepped_is_started_again(programs: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=0)
    assert call(programs, str(run), "quickstart").stdout == f"train quickstart run.dir={run}\n"


def test_a_checkpoint_is_resumed(programs: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=2, checkpoint=True)
    assert call(programs, str(run), "quickstart", "steps=9").stdout == f"train --resume {run} steps=9\n"


def test_a_run_that_ended_before_its_first_checkpoint_is_left_alone(programs: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1)
    assert call(programs, str(run), "quickstart").stdout == f"train quickstart run.dir={run}-2\n"
    make_run(tmp_path / "run-2", steps=1, checkpoint=True)
    assert call(programs, str(run), "quickstart").stdout == f"train --resume {run}-2\n"


def test_the_lock_of_a_machine_that_is_gone_is_removed(programs: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1, checkpoint=True)
    lock = run / "run.lock"
    lock.write_text(json.dumps({"host": "another", "pid": 1}, indent=2))
    answer = call(programs, str(run), "quickstart")
    assert "shows no sign of life; removing it" in answer.stderr
    assert not lock.exists()


def test_the_lock_of_a_live_run_stays(programs: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1, checkpoint=True)
    lock, done = run / "run.lock", threading.Event()
    lock.write_text(json.dumps({"host": "another", "pid": 1}, indent=2))

    def beat() -> None:
        while not done.wait(0.05):
            os.utime(lock, (time.time(), time.time() + beat.count))  # type: ignore[attr-defined]
            beat.count += 1  # type: ignore[attr-defined]

    beat.count = 0  # type: ignore[attr-defined]
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        answer = call(programs, str(run), "quickstart", wait_s=4)
    finally:
        done.set()
        thread.join()
    assert "watching it for 4 s" in answer.stderr
    assert lock.exists()
    assert answer.stdout == f"train --resume {run}\n"  # rlkl refuses, and names the owner


@pytest.mark.parametrize("words", [[], ["runs/x"], ["quickstart", "steps=3"], ["steps=3", "quickstart"]])
def test_words_in_another_order_are_refused(words: list[str], programs: Path) -> None:
    answer = call(programs, *words)
    assert answer.returncode == 2
    assert "expected RUN_DIR" in answer.stderr
    assert answer.stdout == ""
