"""``make gpu`` ends with code 2 without a GPU, and the planned memory is the learner's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.against.workload import CASES, tiny, write_workload
from benchmarks.gpu.device import check
from benchmarks.gpu.step import planned_bytes
from rlkl.costs.memory import CONTEXT, SLACK


def test_without_a_device_the_check_ends_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert check([]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert check(["H100"]) == 0
    assert capsys.readouterr().out == "cuda:0: H100\n"


def test_the_planned_memory_is_that_of_the_works_learner(tmp_path: Path) -> None:
    workload = write_workload(replace(tiny(CASES["bfloat16"]), micro_batch_tokens=1024), tmp_path)
    without = replace(workload, case=replace(workload.case, kl_coef=0.0))
    reference = 2 * workload.parameters
    assert planned_bytes(workload) > CONTEXT + 18 * workload.parameters + reference
    assert planned_bytes(workload) - planned_bytes(without) == pytest.approx(SLACK * reference)
