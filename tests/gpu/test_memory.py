"""The peak memory of a step against the plan's formula."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.against.workload import write_workload
from benchmarks.gpu.plan import planned_memory
from benchmarks.gpu.step import SHAPES, case_for, measure


def test_a_step_needs_what_the_plan_says(tmp_path: Path):
    workload = write_workload(case_for(SHAPES["0.1B"], micro_batch_tokens=8192), tmp_path)
    planned = planned_memory(workload)
    assert planned.limit < torch.cuda.mem_get_info()[0], "this test needs a GPU with about 10 GiB free"
    _, peak = measure(workload)
    assert 0.6 * planned.total < peak < planned.limit
