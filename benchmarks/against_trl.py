"""Compare rlkl with TRL's `GRPOTrainer`: the same GRPO step, on the same completions, by turns on the same machine.

    python -m benchmarks.against_trl                              # every case, three rounds each
    python -m benchmarks.against_trl --case float32 --case bfloat16
    python -m benchmarks.against_trl --write benchmarks/RESULTS.md

Each round runs each side in a fresh process, so that peak memory is each one's own. The first step of both must have
the same loss and gradient norm, or the benchmark fails: a time without equal work means nothing. In the ``whole`` cases
each side samples for itself; they must sample equally many tokens. Run it on a machine that does nothing else.
``--tiny`` tries it on a very small model; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.against.measured import Measured
from benchmarks.against.report import HEADER, SIDES, Compared, busy, page, row
from benchmarks.against.side import MARK
from benchmarks.against.workload import CASES, Case, tiny, write_workload

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the cases, print a table, and write it if asked."""
    parser = argparse.ArgumentParser(description="rlkl and TRL side by side")
    parser.add_argument("--case", action="append", choices=list(CASES), help="a case; left out: all")
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes a side")
    parser.add_argument("--steps", type=int, default=2, help="measured steps a process, after a first one")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each side")
    parser.add_argument("--write", type=Path, help="Markdown file for the table")
    parser.add_argument("--tiny", action="store_true", help="a very small model, to try the benchmark")
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    if warning := busy(load):
        print(warning, file=sys.stderr)
    print(" | ".join(HEADER), flush=True)
    found = []
    for name in options.case or CASES:
        case = tiny(CASES[name]) if options.tiny else CASES[name]
        compared = compare(name, case, rounds=options.rounds, steps=options.steps, threads=options.threads)
        compared.check()
        print(" | ".join(row(compared)), flush=True)
        found.append(compared)
    if options.write:
        options.write.write_text(page(found, load=load, threads=options.threads))


def compare(name: str, case: Case, *, rounds: int, steps: int, threads: int) -> Compared:
    """Run all rounds of one case. The side that starts changes from round to round."""
    with tempfile.TemporaryDirectory() as folder:
        workload = write_workload(case, Path(folder))
        measured: dict[str, list[Measured]] = {side: [] for side in SIDES}
        rates = []
        for number in range(rounds):
            rates.append(json.loads(_output(["benchmarks.against.rate", str(threads)], threads))[case.dtype])
            for side in SIDES if number % 2 == 0 else reversed(SIDES):
                command = ["benchmarks.against.side", side, folder, str(steps), str(threads)]
                measured[side].append(Measured.load(_output(command, threads).rpartition(MARK)[2]))
    return Compared(
        name=name,
        description=str(case),
        dtype=case.dtype,
        useful_flops=workload.useful_flops,
        rate=max(rates),
        rounds=measured,
        whole=case.whole,
    )


def _output(module: list[str], threads: int) -> str:
    """Run ``python -m module ...`` and return its output; on an error print its messages and end."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
    }
    done = subprocess.run([sys.executable, "-m", *module], capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        sys.exit(f"{' '.join(module)} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
