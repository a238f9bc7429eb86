"""Does lag cost quality? Train two recipes under each schedule with several seeds, and print tables in Markdown.

python -m benchmarks.schedule_quality [FOLDER] [--seeds 5]

Runs that are in FOLDER already are not made again. A row is the mean and the standard deviation over the seeds of the
mean over the last 5 steps. A difference is paired by seed, with its 95 % t interval.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

SCHEDULES: Mapping[str, Sequence[str]] = {
    "alternate": ("rollout.schedule=alternate",),
    "one_step_off": ("rollout.schedule=one_step_off",),
    "stream, at most 2": ("rollout.schedule=stream", "rollout.max_staleness=2"),
    "stream, at most 4": ("rollout.schedule=stream", "rollout.max_staleness=4"),
}
RECIPES: Mapping[str, Mapping[str, str]] = {
    "quickstart": {"reward": "reward/mean", "KL": "kl/policy_to_reference"},
    "reviews_grpo": {"proxy": "reward/mean", "gold": "monitor/gold", "KL": "kl/policy_to_reference"},
}
"""The columns of each recipe's table, with their metrics."""
LAST_STEPS = 5
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Half the width of a 95 % interval in standard errors, by degrees of freedom."""


def main() -> None:
    """Make the runs that are missing, and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("build/schedule_quality"))
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    for seed in range(arguments.seeds):
        for recipe in RECIPES:
            for schedule, overrides in SCHEDULES.items():
                train(recipe, seed, overrides, run_dir(arguments.folder, recipe, schedule, seed))
    for recipe, columns in RECIPES.items():
        print(f"\n{recipe}\n")
        print_table(arguments.folder, recipe, columns, arguments.seeds)


def run_dir(folder: Path, recipe: str, schedule: str, seed: int) -> Path:
    """Return the folder of one run."""
    return folder / f"{recipe}-{schedule.replace(', at most ', '')}-{seed}"


def train(recipe: str, seed: int, overrides: Sequence[str], folder: Path) -> None:
    """Run a recipe, unless it has been run to its end."""
    if (folder / "policy").is_dir():
        return
    made = folder.with_name(folder.name + ".log")
    made.parent.mkdir(parents=True, exist_ok=True)
    with made.open("w") as log:
        command = [sys.executable, "-m", "rlkl", "train", recipe, f"seed={seed}", f"run.dir={folder}", *overrides]
        subprocess.run([*command, "tracking.wandb=off"], stdout=log, stderr=subprocess.STDOUT, check=True)


def last(folder: Path, metric: str) -> float:
    """Return a metric's mean over the last steps of a run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return fmean(line[metric] for line in lines[-LAST_STEPS:])


def print_table(folder: Path, recipe: str, columns: Mapping[str, str], seeds: int) -> None:
    """Print one row a schedule: each column's mean and standard deviation, then its differences to alternate."""
    shown = [text for name in columns for text in (name, f"{name} against alternate")]
    print("| schedule | " + " | ".join(shown) + " |\n|" + "---|" * (len(shown) + 1))
    for schedule in SCHEDULES:
        cells = []
        for metric in columns.values():
            values, base = (
                [last(run_dir(folder, recipe, name, seed), metric) for seed in range(seeds)]
                for name in (schedule, "alternate")
            )
            cells.append(f"{fmean(values):.3f} ± {stdev(values):.3f}")
            gaps = [value - other for value, other in zip(values, base, strict=True)]
            half = T_95[seeds - 1] * stdev(gaps) / seeds**0.5
            cells.append("" if schedule == "alternate" else f"{fmean(gaps):+.3f} ({half:.3f})")
        print(f"| {schedule} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
