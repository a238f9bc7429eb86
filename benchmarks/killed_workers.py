"""Kill a rollout worker every third step: what does it cost, and does it change a number?

The quickstart with two workers runs once undisturbed and once with kills. The cost of a kill is what the run takes
longer, divided by the kills. Beside it stands what an engine takes to start at the beginning of the undisturbed run:
from the start of the workers' processes to the first publish.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from rlkl.tracking.metrics.registry import without_timings
from rlkl.tracking.records.reading import read_metrics

_STARTED = "publishing the policy to the rollout workers"
_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run."""

    engine_s: float
    """Seconds of the start of its engines."""
    steps_s: float
    kills: int
    numbers: str
    """Hash of the metrics of all steps without times."""
    rounding: float
    """The largest difference between the log-probs of sampler and learner, in nats."""
    weights: str
    """Hash of the policy's weights."""


def workers_of(run: psutil.Popen) -> list[psutil.Process]:
    """Return the processes of the rollout workers."""
    try:
        return [process for process in run.children(recursive=True) if "RolloutWorker" in process.name()]
    except psutil.Error:
        return []


def measure(folder: Path, *, steps: int, every: int) -> Outcome:
    """Run, and kill a worker after each ``every`` steps; 0 kills none."""
    run_dir, log = folder / "run", folder / "run.log"
    folder.mkdir()
    words = ["train", "quickstart", f"steps={steps}", "rollout.workers=2", "tracking.wandb=off", f"run.dir={run_dir}"]
    with log.open("w") as output:
        run = psutil.Popen([sys.executable, "-m", "rlkl", *words], stdout=output, stderr=subprocess.STDOUT)
    began = engine_s = 0.0
    kills = 0
    while run.poll() is None:
        time.sleep(_PAUSE_S)
        if not engine_s and _STARTED in log.read_text():
            engine_s = time.time() - (began or time.time())
        elif not engine_s and (workers := workers_of(run)):
            began = began or min(worker.create_time() for worker in workers)
        done = len(read_metrics(run_dir / "metrics.jsonl"))
        if every and done >= every * (kills + 1) and done < steps and len(workers := workers_of(run)) == 2:
            workers[kills % 2].kill()
            kills += 1
    if run.wait():
        raise SystemExit(f"the run failed: {log.read_text()[-2000:]}")
    records = [without_timings(record) for record in read_metrics(run_dir / "metrics.jsonl")]
    rounding = max(record.pop(name) for record in records for name in list(record) if "rollout/mismatch" in name)
    return Outcome(
        engine_s=engine_s,
        steps_s=sum(record["time/step_s"] for record in read_metrics(run_dir / "metrics.jsonl")),
        kills=kills,
        numbers=_hash(json.dumps(records, sort_keys=True).encode()),
        rounding=rounding,
        weights=_hash((run_dir / "policy" / "model.safetensors").read_bytes()),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of both runs and the cost of a kill."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--every", type=int, default=3)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        calm = measure(Path(folder) / "undisturbed", steps=options.steps, every=0)
        killed = measure(Path(folder) / "killed", steps=options.steps, every=options.every)
    sys.stdout.write("| run | kills | seconds of all steps | numbers | weights |\n|---|---|---|---|---|\n")
    for name, one in (("undisturbed", calm), ("killed", killed)):
        sys.stdout.write(f"| {name} | {one.kills} | {one.steps_s:.1f} | {one.numbers[:12]} | {one.weights[:12]} |\n")
    cost_s = (killed.steps_s - calm.steps_s) / max(killed.kills, 1)
    sys.stdout.write(f"\na kill costs {cost_s:.1f} s; the engines started in {calm.engine_s:.1f} s\n")
    sys.stdout.write(f"sampler against learner: {calm.rounding:.1e} and {killed.rounding:.1e} nats\n")


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    main()
