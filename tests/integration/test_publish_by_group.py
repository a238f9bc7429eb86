"""Weights by group and by host memory make the same engine, bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.runs import REPOSITORY


def publish(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run `tests.integration.publish_by_group`, and return what it saw."""
    (folder / "case.json").write_text(json.dumps(case))
    child = subprocess.run(
        [sys.executable, "-m", "tests.integration.publish_by_group", folder / "case.json", folder / "answers.json"],
        cwd=REPOSITORY,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 0, child.stderr
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
def test_the_processes_of_one_engine_get_their_parts(
    tied: bool, dtype: str, lora: bool, request: pytest.FixtureRequest, tmp_path: Path
):
    model = request.getfixturevalue("tied_model" if tied else "untied_model")
    case = {"engine": "vllm", "model": str(model), "dtype": dtype, "lora": lora, "tensor_parallel": 2}
    check(publish(case, tmp_path), processes=2)
