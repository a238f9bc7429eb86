"""Check for a CUDA device: ``python -m benchmarks.gpu.device`` ends with code 2 if there is none."""

from __future__ import annotations

import sys

import torch


def check(names: list[str]) -> int:
    """Print the devices, or that there is none; return the exit code. ``names``: those of the CUDA devices."""
    if not names:
        built = f"was built for CUDA {torch.version.cuda}" if torch.version.cuda else "was built without CUDA"
        print(
            f"make gpu: no CUDA device: torch {torch.__version__} {built} and finds no GPU. These tests and benchmarks "
            "need an NVIDIA GPU, its driver, and torch for CUDA: make install ACCELERATOR=cuda",
            file=sys.stderr,
        )
        return 2
    for number, name in enumerate(names):
        print(f"cuda:{number}: {name}")
    return 0


def cuda_devices() -> list[str]:
    """Return the names of the CUDA devices that torch finds."""
    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


if __name__ == "__main__":
    sys.exit(check(cuda_devices()))
