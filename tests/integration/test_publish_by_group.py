"""Weights by group and by host memory make the same engine, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.runs import DEADLINE_S, REPOSITORY


def publish(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run `tests.integration.publish_by_group`, and return what it saw."""
    (folder / "case.json").write_text(json.dumps(case))
    child = subprocess.run(
        [sys.executable, "-m", "tests.integration.publish_by_group", folder / "case.json", folder / "answers.json"],
        cwd=REPOSITORY,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert child.returncode == (-signal.SIGKILL if case.get("is_killed") else 0), child.stderr
    return json.loads((folder / "answers.json").read_text())


def check(report: dict[str, Any], *, processes: int = 1) -> None:
    shown, sums = report["shown"], report["sums"]
    assert shown["group 1"] == shown["host 1"]
    assert shown["group 2"] == shown["host 2"]
    assert shown["host 1"]["scores"] != shown["host 2"]["scores"]
    assert len(sums) == 2 * (1 + processes)
    for sent, *arrived in (sums[: 1 + processes], sums[1 + processes :]):
        assert sent
        assert arrived == [sent] * processes


@pytest.mark.parametrize("engine", ["hf", "vllm"])
@pytest.mark.parametrize(
    ("tied", "dtype", "lora"),
    [(True, "float32", False), (False, "bfloat16", False), (False, "float32", True), (True, "bfloat16", True)],
)
def test_group_and_host_make_the_same_engine(
    engine: str, tied: bool, dtype: str, lora: bool, request: pytest.FixtureRequest, tmp_path: Path
):
    model = request.getfixturevalue("tied_model" if tied else "untied_model")
    check(publish({"engine": engine, "model": str(model), "dtype": dtype, "lora": lora}, tmp_path))


@pytest.mark.parametrize(("tied", "dtype", "lora"), [(True, "float32", False), (False, "bfloat16", True)])
def test_the_processes_of_one_engine_get_their_parts_and_end_with_it(
    tied: bool, dtype: str, lora: bool, request: pytest.FixtureRequest, tmp_path: Path
):
    model = request.getfixturevalue("tied_model" if tied else "untied_model")
    case = {"engine": "vllm", "model": str(model), "dtype": dtype, "lora": lora, "tensor_parallel": 2}
    report = publish(case | {"is_killed": True}, tmp_path)
    check(report, processes=2)

    assert len(report["children"]) == 2
    end = time.monotonic() + 5  # vLLM's own watch took 10 s and more
    while any(is_running(child) for child in report["children"]):
        assert time.monotonic() < end, "the engine's processes have outlived it"
        time.sleep(0.05)


def is_running(process: int) -> bool:
    """Return whether a process is there and has not ended yet."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
