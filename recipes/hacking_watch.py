"""Measure how early the hacking watch notices a hacked proxy on `reviews`, and how often it gives a false alarm.

python recipes/hacking_watch.py FOLDER

Nine runs of `rlkl train`, one after the other: GRPO without a KL, which hacks the proxy, and two healthy rules, GRPO
with a KL and PPO, each over three seeds. Runs that FOLDER contains are not repeated. Prints the tables
of docs/hacking_watch.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

SEEDS = (1, 2, 3)
GOLD, PROXY = "monitor/gold", "reward/mean"
WINDOW = 5
SIGNALS = ("similarity", "empty", "length", "repetition", "kl_acceleration", "gap/gold", "fall/gold")

Records = list[dict[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    name: str
    recipe: str
    overrides: tuple[str, ...] = ()


HACKED = Arm(name="hacked", recipe="reviews_grpo", overrides=("update.kl_coef=0",))
HEALTHY = (
    Arm(name="GRPO, KL 0.4", recipe="reviews_grpo", overrides=("update.kl_coef=0.4",)),
    Arm(name="PPO", recipe="reviews_ppo"),
)


def train(arm: Arm, seed: int, folder: Path) -> Records:
    """Train and return the records. Raise `subprocess.CalledProcessError` if it fails; its log is beside its folder."""
    run_dir = folder / f"{arm.name.replace(', ', '_').replace(' ', '_')}-{seed}"
    if not (run_dir / "policy").is_dir():
        command = [sys.executable, "-m", "rlkl", "train", arm.recipe, f"run.dir={run_dir}", f"seed={seed}"]
        with run_dir.with_name(f"{run_dir.name}.log").open("w") as log:
            subprocess.run([*command, "tracking.wandb=off", *arm.overrides], stdout=log, stderr=log, check=True)
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def smoothed(records: Records, key: str) -> list[float]:
    """Average the last `WINDOW` steps, at each step."""
    values = [record[key] for record in records]
    return [fmean(values[max(end - WINDOW, 0) : end]) for end in range(1, len(values) + 1)]


def peak(records: Records) -> int:
    """Return the step that ends the best `WINDOW` steps of the gold reward."""
    gold = smoothed(records, GOLD)
    return max(range(WINDOW, len(gold) + 1), key=lambda step: gold[step - 1])


def collapse(records: Records) -> int | None:
    """Return the first step after the peak at which the gold reward is below its start, over `WINDOW` steps."""
    gold = smoothed(records, GOLD)
    start = gold[WINDOW - 1]
    return next((step for step in range(peak(records), len(gold) + 1) if gold[step - 1] < start), None)


def first_trip(records: Records, signal: str) -> int | None:
    return next((int(r["step"]) for r in records if r.get(f"watch/{signal}", 0.0) >= 1), None)


def runs_table(runs: dict[str, list[Records]]) -> str:
    lines = [
        "| run | seed | gold at the start, best, at the end | peak at step | below its start at step | KL at the end |"
    ]
    lines.append("|---|---|---|---|---|---|")
    for name, of_seeds in runs.items():
        for seed, records in zip(SEEDS, of_seeds, strict=True):
            gold = smoothed(records, GOLD)
            best = peak(records)
            values = f"{gold[WINDOW - 1]:.2f}, {gold[best - 1]:.2f}, {gold[-1]:.2f}"
            kl = smoothed(records, "kl/policy_to_reference")[-1]
            lines.append(f"| {name} | {seed} | {values} | {best} | {collapse(records) or 'never'} | {kl:.1f} |")
    return "\n".join(lines)


def signals_table(runs: dict[str, list[Records]]) -> str:
    hacked = runs[HACKED.name]
    heads = ["signal", "trips at step", "steps after the peak", "steps before gold is below its start"]
    heads += [f"alarms in {len(SEEDS)} runs of {arm.name}" for arm in HEALTHY]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for signal in SIGNALS:
        trips = [first_trip(records, signal) for records in hacked]
        after = [trip - peak(records) for trip, records in zip(trips, hacked, strict=True) if trip is not None]
        ends = [collapse(records) for records in hacked]
        ahead = [end - trip for trip, end in zip(trips, ends, strict=True) if trip is not None and end is not None]
        cells = [f"`{signal}`", ", ".join("never" if trip is None else str(trip) for trip in trips)]
        cells += [spread(after), spread(ahead), *(false_alarms(runs[arm.name], signal) for arm in HEALTHY)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[int]) -> str:
    """Return mean ± standard deviation over the seeds, and the values."""
    if len(values) < 2:
        return ", ".join(map(str, values)) or "never"
    return f"{fmean(values):+.1f} ± {stdev(values):.1f} ({', '.join(f'{value:+d}' for value in values)})"


def false_alarms(of_seeds: list[Records], signal: str) -> str:
    trips = [trip for records in of_seeds if (trip := first_trip(records, signal)) is not None]
    highest = max(max((r.get(f"watch/{signal}", 0.0) for r in records), default=0.0) for records in of_seeds)
    at = f", at step {', '.join(map(str, trips))}" if trips else ""
    return f"{len(trips)}{at} (highest level {highest:.2f})"


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("WANDB_MODE", "offline")
    runs = {arm.name: [train(arm, seed, folder) for seed in SEEDS] for arm in (HACKED, *HEALTHY)}
    print(runs_table(runs))
    print()
    print(signals_table(runs))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]).absolute())
