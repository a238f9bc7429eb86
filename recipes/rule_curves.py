"""Draw the curves of a run: reward, gold reward if the run watches one, and KL to the reference, as one SVG.

python recipes/rule_curves.py runs/reviews_ppo docs/pictures/ppo.svg

The numbers come from metrics.jsonl in the run folder. Thin lines are the steps, thick lines the mean of the last five.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

WINDOW = 5
PANELS = (
    ("reward/mean", "reward that is trained on", "#1f5fa8"),
    ("monitor/gold", "gold reward, only watched", "#2e7d4f"),
    ("monitor/vision", "vision-dependent questions, only watched", "#2e7d4f"),
    ("kl/policy_to_reference", "KL to the reference, nats per sequence", "#b3541e"),
)
"""Metric, title and colour of each panel; a panel is left out if the run does not log its metric."""


def read(run_dir: Path) -> list[dict[str, float]]:
    """Return one record per step."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def smoothed(values: Sequence[float]) -> list[float]:
    """Average each value with up to four values before it."""
    return [fmean(values[max(end - WINDOW, 0) : end]) for end in range(1, len(values) + 1)]


def draw(records: Sequence[dict[str, float]], title: str, target: Path) -> None:
    """Write the picture. The same records give the same file."""
    panels = [panel for panel in PANELS if panel[0] in records[0]]
    style = {"svg.hashsalt": "rlkl", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    with plt.rc_context(style):
        figure, axes = plt.subplots(
            1, len(panels), figsize=(3.4 * len(panels), 2.5), layout="constrained", squeeze=False
        )
        for axis, (key, name, colour) in zip(axes[0], panels, strict=True):
            points = [(record["step"], record[key]) for record in records if key in record]
            steps, values = [step for step, _ in points], [value for _, value in points]
            axis.plot(steps, values, color=colour, linewidth=0.8, alpha=0.4)
            axis.plot(steps, smoothed(values), color=colour, linewidth=2)
            axis.set_title(name, fontsize=9, loc="left")
            axis.set_xlabel("step")
            axis.set_ylim(bottom=min(0.0, *values))
            axis.grid(color="#dddddd", linewidth=0.6)
            axis.spines[["top", "right"]].set_visible(False)
        figure.suptitle(title, fontsize=10, x=0.01, ha="left", fontweight="bold")
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
        plt.close(figure)


def main(run_dir: Path, target: Path) -> None:
    if not (run_dir / "metrics.jsonl").is_file():
        print(f"error: {run_dir}/metrics.jsonl is not there: name the folder of a run, such as runs/quickstart.")
        sys.exit(2)
    records = read(run_dir)
    draw(records, f"{run_dir.name}, {len(records)} steps", target)
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        print(__doc__)
        sys.exit(2)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
