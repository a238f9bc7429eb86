"""Measure a learner's step on a CUDA device: tokens a second, share of the matrix rate, peak memory against the plan.

    python -m benchmarks.gpu.step

Random Qwen3 models in bfloat16, 8 prompts x 8 samples, 512 + up to 512 tokens, with a reference.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import torch

from benchmarks.against.rlkl_side import build_learner, recipe_of, train
from benchmarks.against.workload import Case, Shape, Workload, write_workload
from benchmarks.gpu.device import check, cuda_devices
from rlkl.commands.plan_work import training_of
from rlkl.costs.find import read_shape
from rlkl.costs.memory import GIB, learner_parts, peak_bytes

SHAPES: Mapping[str, Shape] = {
    "0.1B": Shape(layers=12, hidden=768, intermediate=2048, heads=12, kv_heads=4, head_dim=64, vocabulary=32_768),
    "0.6B": Shape(layers=28, hidden=1024, intermediate=3072, heads=16, kv_heads=8, head_dim=128, vocabulary=151_936),
    "1.7B": Shape(layers=28, hidden=2048, intermediate=6144, heads=16, kv_heads=8, head_dim=128, vocabulary=151_936),
}
"""The last two are Qwen3-0.6B and Qwen3-1.7B."""
STEPS = 4
MATRIX_SIZE = 8192


def case_for(shape: Shape, *, micro_batch_tokens: int = 16_384) -> Case:
    """Return a step of long-tailed completions."""
    return Case(
        shape=shape,
        dtype="bfloat16",
        prompt_tokens=512,
        answer_tokens=512,
        end_chance=0.004,
        micro_batch_tokens=micro_batch_tokens,
    )


def planned_bytes(workload: Workload) -> float:
    """Return the peak that ``rlkl plan`` predicts for the learner, with the CUDA context and fragmentation."""
    shape = read_shape(workload.policy)
    return peak_bytes(learner_parts(shape, training_of(recipe_of(workload, steps=1, device="cuda"), shape)))


def matrix_rate(*, turns: int = 10) -> float:
    """Return the best rate of a bfloat16 matrix product on the device, in operations a second."""
    left, right = (torch.randn(MATRIX_SIZE, MATRIX_SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product, best = left @ right, 0.0
    for _ in range(turns):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        torch.matmul(left, right, out=product)
        end.record()
        torch.cuda.synchronize()
        best = max(best, 2 * MATRIX_SIZE**3 / (start.elapsed_time(end) * 1e-3))
    return best


def measure(workload: Workload) -> tuple[float, float]:
    """Return the median seconds of a step after the first, and the peak bytes that torch held on the device."""
    torch.cuda.reset_peak_memory_stats()
    learner = build_learner(workload, steps=STEPS, device="cuda")
    _, seconds = train(learner, workload, steps=STEPS)
    return median(seconds[1:]), float(torch.cuda.max_memory_reserved())


def main() -> int:
    """Measure each model that the device has room for, and print a table."""
    if code := check(cuda_devices()):
        return code
    rate, room = matrix_rate(), torch.cuda.mem_get_info()[0]
    print(f"matrix products {rate / 1e12:,.0f} TFLOP/s in bfloat16, {room / GIB:.0f} GiB free")
    print(f"{'model':>6} {'tokens':>8} {'seconds':>8} {'tokens/s':>9} {'of rate':>7} | {'peak GiB':>8} {'planned':>8}")
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            workload = write_workload(case_for(shape), Path(folder))
            planned = planned_bytes(workload)
            if planned > room:
                print(f"{name:>6} left out: it needs {planned / GIB:.0f} GiB")
                continue
            seconds, peak = measure(workload)
        torch.cuda.empty_cache()
        print(
            f"{name:>6} {workload.tokens:8,} {seconds:8.3f} {workload.tokens / seconds:9,.0f} "
            f"{workload.useful_flops / seconds / rate:7.1%} | {peak / GIB:8.1f} {planned / GIB:8.1f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
