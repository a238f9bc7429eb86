"""Run one side in this process: ``python -m benchmarks.against.side rlkl|trl FOLDER STEPS THREADS``.

The last line of the output is a `Measured`.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch

from benchmarks.against.workload import read_workload

MARK = "MEASURED "


def main(name: str, folder: str, steps: str, threads: str) -> None:
    """Run the side called ``name`` and print the result."""
    torch.set_num_threads(int(threads))
    side = importlib.import_module(f"benchmarks.against.{name}_side")
    print(MARK + side.run(read_workload(Path(folder)), steps=int(steps)).dump(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
