"""Compare the rules on the world `reviews`: sweep the KL weight of each rule, then run the best weights on three seeds.

python recipes/compare_rules.py sweep RESULTS.json    30 runs of one seed
python recipes/compare_rules.py final RESULTS.json    18 runs of three other seeds, each scored, with the table printed

Each run is `rlkl train` in its own process. Runs that RESULTS.json contains are not repeated. Two runs at a time use
two cores; the environment variable JOBS=1 runs one at a time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from threading import Lock

SWEEP_SEED, SEEDS = 0, (1, 2, 3)
LAST = 10
"""Steps at the end of a run over which a sweep averages."""
FIGURES = {"proxy": "reward/mean", "gold": "monitor/gold", "KL": "kl/policy_to_reference"}
METEOR = "similarity/meteor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A rule and the key of its KL weight, swept upward from its usual value by factors of two."""

    name: str
    recipe: str
    key: str
    first: float
    overrides: tuple[str, ...] = ()

    @property
    def weights(self) -> tuple[float, ...]:
        return tuple(round(self.first * 2**n, 4) for n in range(5))


ARMS = (
    Arm(name="SuperHF", recipe="reviews_superhf", key="update.kl_coef", first=0.35),
    Arm(name="PPO", recipe="reviews_ppo", key="update.kl_coef", first=0.05),
    Arm(name="GRPO", recipe="reviews_grpo", key="update.kl_coef", first=0.05),
    Arm(name="SparsePO, common mask", recipe="reviews_sparsepo", key="update.beta", first=0.1),
    Arm(
        name="SparsePO, independent masks",
        recipe="reviews_sparsepo",
        key="update.beta",
        first=0.1,
        overrides=("update.mask=sparse_independent",),
    ),
    Arm(name="DPO, stored pairs", recipe="reviews_dpo", key="update.beta", first=0.1),
)


class Results:
    """Figures of finished runs by name, kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        self.runs: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}

    def add(self, name: str, figures: dict[str, float]) -> None:
        with self._lock:
            self.runs[name] = figures
            self._path.write_text(json.dumps(self.runs, indent=1))


def train(recipe: str, run_dir: Path, *overrides: str) -> list[dict[str, float]]:
    """Run a recipe; returns its records. Raises `subprocess.CalledProcessError` with the log's path if it fails."""
    if not (run_dir / "policy").is_dir():
        run_dir.mkdir(parents=True, exist_ok=True)
        command = [
            str(Path(sys.executable).with_name("rlkl")),
            "train",
            recipe,
            f"run.dir={run_dir}",
            "tracking.wandb=off",
        ]
        with (run_dir.with_suffix(".log")).open("w") as log:
            subprocess.run([*command, *overrides], stdout=log, stderr=log, check=True)
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def run_arm(arm: Arm, weight: float, seed: int, folder: Path) -> tuple[Path, list[dict[str, float]]]:
    run_dir = folder / f"{arm.name.replace(' ', '_').replace(',', '')}-{weight}-{seed}"
    return run_dir, train(arm.recipe, run_dir, f"seed={seed}", f"{arm.key}={weight}", *arm.overrides)


def scored(policy: Path, run_dir: Path) -> dict[str, float]:
    """Score a policy on all 200 prompts, eight times each, and measure its KL to the base model."""
    overrides = ("steps=1", "learner.lr=0", "rollout.prompts_per_step=200", "model.reference=task:reviews", "seed=99")
    record = train("reviews_grpo", run_dir, f"model.path={policy}", "tracking.similarity_pairs=200", *overrides)[-1]
    return {**{name: record[key] for name, key in FIGURES.items()}, "METEOR": record[METEOR]}


def sweep(results: Results, folder: Path) -> None:
    def one(arm: Arm, weight: float) -> None:
        run_dir, records = run_arm(arm, weight, SWEEP_SEED, folder)
        if FIGURES["gold"] in records[-1]:
            figures = {name: fmean(r[key] for r in records[-LAST:]) for name, key in FIGURES.items()}
        else:
            figures = scored(run_dir / "policy", run_dir.with_name(run_dir.name + "-scored"))
        results.add(f"sweep/{arm.name}/{weight}", figures)

    in_parallel([(one, arm, weight) for arm in ARMS for weight in arm.weights], results, "sweep/{0.name}/{1}")
    for arm in ARMS:
        line = "; ".join(f"{w}: {results.runs[f'sweep/{arm.name}/{w}']['gold']:.3f}" for w in arm.weights)
        print(f"{arm.name}: gold by {arm.key} {line}; best {best_weight(arm, results)}")


def best_weight(arm: Arm, results: Results) -> float:
    return max(arm.weights, key=lambda weight: results.runs[f"sweep/{arm.name}/{weight}"]["gold"])


def final(results: Results, folder: Path) -> None:
    def one(arm: Arm, seed: int) -> None:
        run_dir, records = run_arm(arm, best_weight(arm, results), seed, folder)
        figures = scored(run_dir / "policy", run_dir.with_name(run_dir.name + "-scored"))
        results.add(f"final/{arm.name}/{seed}", {**figures, "s": sum(record["time/step_s"] for record in records)})

    in_parallel([(one, arm, seed) for arm in ARMS for seed in SEEDS], results, "final/{0.name}/{1}")
    results.add("base", scored(Path("task:reviews"), folder / "base-scored"))
    print(table(results))


def in_parallel(jobs: Sequence[tuple], results: Results, pattern: str) -> None:
    missing = [job for job in jobs if pattern.format(*job[1:]) not in results.runs]
    with ThreadPoolExecutor(int(os.environ.get("JOBS", "2"))) as pool:
        for future in [pool.submit(*job) for job in missing]:
            future.result()


def table(results: Results) -> str:
    """Return mean and standard deviation over the seeds, as Markdown."""
    names = ("proxy", "gold", "KL", "METEOR", "s")
    base = results.runs["base"]
    lines = ["| rule | KL weight | proxy | gold | KL | METEOR | s |", "|---|---|---|---|---|---|---|"]
    lines.append(f"| base model | | {' | '.join(f'{base[name]:.2f}' for name in names[:-1])} | |")
    for arm in ARMS:
        runs = [results.runs[f"final/{arm.name}/{seed}"] for seed in SEEDS]
        cells = [f"{fmean(r[name] for r in runs):.2f} ± {stdev(r[name] for r in runs):.2f}" for name in names]
        lines.append(f"| {arm.name} | `{arm.key}={best_weight(arm, results)}` | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("sweep", "final"):
        sys.exit(__doc__)
    target = Path(sys.argv[2]).absolute()
    {"sweep": sweep, "final": final}[sys.argv[1]](Results(target), target.parent)
