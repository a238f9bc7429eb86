"""``make gpu`` ends with code 2 without a GPU, and the memory formula by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.against.workload import CASES, tiny, write_workload
from benchmarks.gpu.device import check
from benchmarks.gpu.plan import CONTEXT_BYTES, planned_memory


def test_without_a_device_the_check_ends_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert check([]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert check(["H100"]) == 0
    assert capsys.readouterr().out == "cuda:0: H100\n"


def test_planned_memory_by_hand(tmp_path: Path) -> None:
    case = replace(tiny(CASES["bfloat16"]), micro_batch_tokens=64)
    workload = write_workload(case, tmp_path)
    planned = planned_memory(workload)
    assert planned.state == pytest.approx(18 * workload.parameters)
    assert planned.reference == pytest.approx(2 * workload.parameters)
    assert planned.gradient == 2 * 256 * 64
    assert planned.activations == 2 * (8 * 64 + 6 * 64 + 8 * 32 + 8 * 128) * 64
    assert planned.logits == 14 * 1024 * 256
    assert planned.limit == pytest.approx(planned.total * 1.05 + CONTEXT_BYTES)
