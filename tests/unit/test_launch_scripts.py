"""The state folder of launch/: only what the scripts made is removed, and only what is the user's own is run."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """A copy of launch/ beside a `ray` that starts nothing, so that a test can end in neither a cluster nor a job."""
    project = tmp_path / "project"
    shutil.copytree(ROOT / "launch", project / "launch")
    program = project / ".venv" / "bin" / "ray"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho started >>"$RAY_LOG"\nexit 1\n')
    program.chmod(0o755)
    (program.parent / "python").symlink_to(shutil.which("python3") or "python3")
    return project / "launch"


def call(scripts: Path, script: str, *words: str, state: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment |= {"RLKL_CLUSTER_DIR": state, "RAY_LOG": str(scripts / "log"), **more}
    return subprocess.run(
        ["bash", scripts / script, *words], env=environment, cwd=scripts, capture_output=True, text=True, timeout=300
    )


def test_start_removes_nothing_from_a_folder_with_files_of_its_own(scripts: Path, tmp_path: Path):
    state = tmp_path / "thesis"
    state.mkdir(mode=0o700)
    (state / "chapter.tex").write_text("years of work")
    answer = call(scripts, "local_cluster.sh", "start", state=str(state))
    assert answer.returncode == 1
    assert f"{state} holds files that this script did not make" in answer.stderr
    assert [file.name for file in state.iterdir()] == ["chapter.tex"]
    assert not (scripts / "log").exists()


def test_start_clears_only_what_an_earlier_start_made(scripts: Path, tmp_path: Path):
    state = tmp_path / "state"
    first = call(scripts, "local_cluster.sh", "start", state=f"{state}/")
    assert "ray start failed" in first.stderr
    assert (state / ".rlkl-cluster").is_file()
    (state / "ray" / "session").mkdir(parents=True)
    (state / "env").write_text("old")
    (state / "notes").write_text("mine")
    assert "ray start failed" in call(scripts, "local_cluster.sh", "start", state=str(state)).stderr
    assert not (state / "ray").exists()
    assert not (state / "env").exists()
    assert (state / "notes").read_text() == "mine"
    assert (scripts / "log").read_text() == "started\nstarted\n"


def trap(kind: str, tmp_path: Path) -> tuple[Path, str]:
    """A state folder that somebody else may have prepared, with code in it; and why it is refused."""
    state, code = tmp_path / "state", f"touch {tmp_path}/stolen\nexport RAY_ADDRESS=127.0.0.1:1\n"
    if kind == "of another user":  # of root, or, for root, of nobody
        if os.getuid() != 0:
            return Path("/usr"), "belongs to another user"
        state.mkdir(mode=0o700)
        (state / "env").write_text(code)
        os.chown(state, 65534, 65534)
        return state, "belongs to another user"
    target = tmp_path / "target" if kind == "a link" else state
    target.mkdir(mode=0o700)
    (target / "env").write_text(code)
    (target / ".rlkl-cluster").write_text("")
    if kind == "a link":
        state.symlink_to(target)
        return state, "is a symbolic link"
    state.chmod(0o755)
    return state, "can be read or changed by other users"


@pytest.mark.parametrize("kind", ["of another user", "a link", "open to others"])
def test_a_state_folder_of_doubtful_origin_is_neither_run_nor_used(kind: str, scripts: Path, tmp_path: Path):
    state, reason = trap(kind, tmp_path)
    for script, words in (
        ("submit.sh", ["quickstart"]),
        ("local_cluster.sh", ["status"]),
        ("local_cluster.sh", ["start"]),
    ):
        answer = call(scripts, script, *words, state=f"{state}/")
        assert answer.returncode == 1, (script, words)
        assert reason in answer.stderr, (script, words)
    assert call(scripts, "local_cluster.sh", "stop", state=str(state)).returncode == 0
    call(scripts, "submit.sh", "quickstart", state=str(state), RAY_ADDRESS="http://127.0.0.1:1")
    assert not (tmp_path / "stolen").exists()
    if tmp_path in state.parents:
        assert (state / "env").exists()


def test_an_env_that_is_a_link_is_not_run(scripts: Path, tmp_path: Path):
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    (tmp_path / "code").write_text(f"touch {tmp_path}/stolen\n")
    (state / "env").symlink_to(tmp_path / "code")
    answer = call(scripts, "submit.sh", "quickstart", state=str(state))
    assert answer.returncode == 1
    assert "no cluster" in answer.stderr
    assert not (tmp_path / "stolen").exists()
