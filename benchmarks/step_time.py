"""Measure the parts of a warmed-up quickstart step: sampling, reward, learner, publish and proof, and the rest."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median

import rlkl
from rlkl.tracking.records.reading import read_metrics

STEPS = 30
WARM_UP = 10


def main(overrides: list[str]) -> None:
    """Train the quickstart for some steps and print the median of each part."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = rlkl.load_recipe(
            "quickstart", f"steps={STEPS}", f"run.dir={folder}/run", "tracking.console=plain", *overrides
        )
        rlkl.train(recipe)
        records = read_metrics(Path(folder) / "run" / "metrics.jsonl")[WARM_UP:]
    step_s = median(record["time/step_s"] for record in records)
    print(
        f"\nmedian of {len(records)} steps after {WARM_UP}: {step_s * 1e3:.0f} ms, "
        f"{median(record['rollout/tokens_per_s'] for record in records):,.0f} tokens/s sampled"
    )
    for part in ("rollout", "reward", "learner", "publish"):
        part_s = median(record[f"time/{part}_s"] for record in records)
        print(f"{part:>10} {part_s * 1e3:7.1f} ms {part_s / step_s:6.1%}")
    print(f"outside generation, reward and learner: {median(r['time/other_fraction'] for r in records):.1%}")


if __name__ == "__main__":
    main(sys.argv[1:])
