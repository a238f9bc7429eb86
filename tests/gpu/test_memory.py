"""The peak memory of a step against the prediction of ``rlkl plan``."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.against.workload import write_workload
from benchmarks.gpu.step import SHAPES, case_for, measure, planned_bytes
from rlkl.costs.memory import CONTEXT


def test_a_step_needs_what_the_plan_says(tmp_path: Path):
    workload = write_workload(case_for(SHAPES["0.1B"], micro_batch_tokens=8192), tmp_path)
    planned = planned_bytes(workload)
    assert planned < torch.cuda.mem_get_info()[0], "this test needs a GPU with about 10 GiB free"
    _, peak = measure(workload)
    assert 0.6 * (planned - CONTEXT) < peak < planned
