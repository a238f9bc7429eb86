"""Run for a long time, and compare the first tenth of the run with the last: does anything grow?

python -m tests.torture.soak [--minutes 30] [--folder build/soak]

Trains the quickstart with its reward in processes, evaluation, checkpoints and W&B offline, and looks at all its
processes every few seconds; each look is a line of `looks.jsonl`. Prints a table. The exit code is 1 if the run fails,
or if memory, handles, threads or step time grow by more than `LIMITS` allow.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median

import psutil

from tests.torture.torture import start

WORDS = (
    "train",
    "quickstart",
    "steps=1000000",
    "rollout.prompts_per_step=16",
    "rollout.samples_per_prompt=8",
    "rewards=[{function: task:arithmetic, mode: process, workers: 2}]",
    "eval={data: {source: task:arithmetic/test}, every: 100, samples: 2, limit: 32}",
    "checkpoint.every=50",
    "tracking.wandb=offline",
    "tracking.samples_every=20",
)
LIMITS: Mapping[str, tuple[float, float]] = {
    "memory, MiB": (1.02, 2.0),
    "handles": (1.0, 4.0),
    "threads": (1.0, 4.0),
    "seconds a step": (1.02, 0.0),
}
"""A figure may grow by this factor, and by this much on top."""
KINDS = {
    "LearnerWorker": "learner",
    "RolloutWorker": "rollout worker",
    "raylet": "Ray",
    "gcs_server": "Ray",
    "rlkl.rewards.execution": "reward process",
    "wandb-core": "W&B",
}
LOOKS = "looks.jsonl"
"""File in the folder with all figures, a line a look."""
_PAUSE_S = 5.0
_DEADLINE_S = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The figures of one moment, by kind of process; of several processes of a kind, the sum."""

    steps: int
    """Steps that the run has recorded."""
    figures: Mapping[str, Mapping[str, float]]
    disk_mib: float


def kind_of(process: psutil.Process) -> str | None:
    """Return the kind of a process; None for one that is not watched."""
    words = f"{process.name()} {' '.join(process.cmdline())}"
    if " train quickstart " in words:
        return "driver"
    return next((kind for word, kind in KINDS.items() if word in words), None)


def anonymous_bytes(process: int) -> int:
    """Return the memory that a process holds for itself.

    Pages of files are left out: they count or not as other processes come and go that share them.
    """
    status = Path(f"/proc/{process}/status").read_text().splitlines()
    line = next((line for line in status if line.startswith("RssAnon:")), "RssAnon: 0 kB")
    return int(line.split()[1]) * 1024


def look(root: psutil.Process, run_dir: Path) -> Look:
    """Look at all processes of a run, and at its folder."""
    figures: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for process in (root, *root.children(recursive=True)):
        try:
            kind = kind_of(process)
            if kind is not None:
                of_kind = figures[kind]
                of_kind["memory, MiB"] += anonymous_bytes(process.pid) / 2**20
                of_kind["handles"] += process.num_fds()
                of_kind["threads"] += process.num_threads()
        except (psutil.Error, OSError):  # it has ended in between
            continue
    files = [path for path in run_dir.rglob("*") if path.is_file()] if run_dir.is_dir() else []
    sizes = [path.stat().st_size for path in files if path.exists()]
    plain = {kind: dict(of_kind) for kind, of_kind in figures.items()}
    return Look(steps=len(step_seconds(run_dir)), figures=plain, disk_mib=sum(sizes) / 2**20)


def step_seconds(run_dir: Path) -> list[float]:
    """Return the seconds of all steps that are recorded."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["time/step_s"] for line in lines]


def watch(root: psutil.Popen, run_dir: Path, minutes: float) -> Iterator[Look]:
    """Look at a run again and again from its first step on, for so long or until it ends."""
    end = None
    while root.poll() is None and (end is None or time.monotonic() < end):
        time.sleep(_PAUSE_S)
        try:
            seen = look(psutil.Process(root.pid), run_dir)
        except psutil.NoSuchProcess:
            return
        if seen.steps:
            end = end or time.monotonic() + 60 * minutes
            with (run_dir.parent / LOOKS).open("a") as file:
                file.write(json.dumps(asdict(seen)) + "\n")
            yield seen


def rows(looks: Sequence[Look], seconds: Sequence[float]) -> Iterator[tuple[str, str, float, float]]:
    """Yield kind, figure, and its values in the first and in the last tenth of the steps.

    The very first steps warm up, so the first tenth begins once 2 % of the steps are done.
    """
    steps = len(seconds)
    early = [one for one in looks if 0.02 * steps <= one.steps <= 0.12 * steps]
    late = [one for one in looks if one.steps >= 0.9 * steps]
    if not early or not late:
        raise SystemExit(f"{steps} steps are too few for a comparison; give more --minutes")
    for kind in sorted({kind for one in (*early, *late) for kind in one.figures}):
        for name in ("memory, MiB", "handles", "threads"):
            first, last = (
                [one.figures[kind][name] for one in part if kind in one.figures] or [0.0] for part in (early, late)
            )
            yield kind, name, median(first), median(last)
    tenth = max(steps // 10, 1)
    yield "run", "seconds a step", fmean(seconds[tenth // 5 : tenth]), fmean(seconds[-tenth:])
    yield "run", "folder, MiB", early[-1].disk_mib, late[-1].disk_mib


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, look, stop the run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--folder", type=Path, default=Path("build/soak"))
    options = parser.parse_args(arguments)
    folder: Path = options.folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run_dir, log = folder / "run", folder / "run.log"
    child = start([*WORDS, f"run.dir={run_dir}"], log)
    try:
        looks = list(watch(child, run_dir, options.minutes))
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
    code = child.wait(_DEADLINE_S)
    if code != 128 + signal.SIGTERM:
        sys.stdout.write(f"the run ended with exit code {code}; see {log}\n")
        return 1
    seconds = step_seconds(run_dir)
    grew = []
    sys.stdout.write(f"{len(seconds)} steps in {sum(seconds) / 60:.0f} minutes\n\n")
    sys.stdout.write("| process | figure | first tenth | last tenth |\n|---|---|---|---|\n")
    for kind, name, first, last in rows(looks, seconds):
        sys.stdout.write(f"| {kind} | {name} | {first:.4g} | {last:.4g} |\n")
        factor, more = LIMITS.get(name, (float("inf"), 0.0))
        if last > factor * first + more:
            grew.append(f"{name} of {kind}: {first:.4g} -> {last:.4g}")
    sys.stdout.write(f"\n{'grew: ' + '; '.join(grew) if grew else 'nothing grew beyond the limits'}\n")
    return int(bool(grew))


if __name__ == "__main__":
    sys.exit(main())
