"""Compare PAPO with what it is built on, on the world `shapes`: GRPO with PAPO_G, DAPO with PAPO_D, three seeds each.

python recipes/compare_papo.py compare RESULTS.json    12 runs, each policy scored on other questions; prints a table
python recipes/compare_papo.py hack RESULTS.json       gamma far too large, with and without the double entropy
python recipes/compare_papo.py time RESULTS.json       step times of GRPO and PAPO, by turns

Runs are `rlkl train` (see `compare_rules.py`); what RESULTS.json has is not run again.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev

from compare_rules import Results, train

SEEDS = (1, 2, 3)
STEPS = 120
GRPO = "{rule: grpo, aggregation: token_mean, clip_high: 0.3, kl_coef: 0.01}"
"""PAPO_G without its own terms."""
DAPO = "rollout.max_rounds=4"
TEST_ROWS = 512
PROBES = (
    "rewards=[{function: task:shapes}, {function: task:shapes/vision, role: monitor}, "
    "{function: task:shapes/guess, role: monitor}]"
)
ENTROPY = 0.3
HACKED = (
    (0.02, 0.0, True),
    (0.02, ENTROPY, True),
    (0.5, 0.0, True),
    (0.5, ENTROPY, True),
    (0.5, 0.0, False),
    (2.0, 0.0, False),
)
"""gamma, both entropy weights, and whether the corrupted log-probs are recomputed, with gradient."""
TIMED_STEPS, TIMED_TURNS = 30, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    name: str
    overrides: tuple[str, ...]


ARMS = (
    Arm(name="GRPO", overrides=(f"update={GRPO}",)),
    Arm(name="PAPO_G", overrides=("update={rule: papo, perception_coef: 0.02}",)),
    Arm(name="DAPO", overrides=("update={rule: grpo, variant: dapo}", DAPO)),
    Arm(
        name="PAPO_D",
        overrides=(
            "update={rule: papo, variant: dapo, kl_coef: 0.0, perception_coef: 0.01, entropy_coef: 0.03, "
            "corrupted_entropy_coef: 0.03}",
            DAPO,
        ),
    ),
)


def scored(policy: str, run_dir: Path) -> dict[str, float]:
    """Sample a policy's answers to held-out questions, eight each; one seed for all policies."""
    overrides = ("steps=1", "learner.lr=0", f"rollout.prompts_per_step={TEST_ROWS}", "seed=99")
    further = ("data.source=task:shapes/test", "model.reference=task:shapes", "update={rule: papo}", PROBES)
    record = train("shapes_papo", run_dir, f"model.path={policy}", *overrides, *further)[-1]
    return {
        "accuracy": record["reward/mean"],
        "vision": record["monitor/vision"],
        "guesses": record["monitor/guess"],
        "K": record["perception/kl"],
        "H": record["perception/entropy_clean"],
        "H corrupted": record["perception/entropy_corrupted"],
        "KL": record["kl/policy_to_reference"],
    }


def compare(results: Results, folder: Path) -> None:
    def one(arm: Arm, seed: int) -> None:
        run_dir = folder / f"{arm.name}-{seed}"
        records = train("shapes_papo", run_dir, f"steps={STEPS}", f"seed={seed}", *arm.overrides)
        figures = scored(f"{run_dir}/policy", folder / f"{run_dir.name}-scored")
        results.add(f"{arm.name}/{seed}", {**figures, "s": fmean(record["time/step_s"] for record in records)})

    jobs = [(arm, seed) for seed in SEEDS for arm in ARMS if f"{arm.name}/{seed}" not in results.runs]
    with ThreadPoolExecutor(int(os.environ.get("JOBS", "2"))) as pool:
        for future in [pool.submit(one, *job) for job in jobs]:
            future.result()
    if "base" not in results.runs:
        results.add("base", scored("task:shapes", folder / "base-scored"))
    names = [*results.runs["base"], "s"]
    print("| rule |", " | ".join(names), "|\n|---|" + "---|" * len(names))
    print("| base model |", " | ".join(f"{results.runs['base'][name]:.3f}" for name in names[:-1]), "| |")
    for arm in ARMS:
        runs = [results.runs[f"{arm.name}/{seed}"] for seed in SEEDS]
        cells = [f"{fmean(r[name] for r in runs):.3f} ± {stdev(r[name] for r in runs):.3f}" for name in names]
        print(f"| {arm.name} |", " | ".join(cells), "|")


def hack(results: Results, folder: Path) -> None:
    """Train with nothing that holds the policy, with growing gamma, and with the whole double entropy."""

    def one(key: str, gamma: float, entropy: float, recompute: bool) -> None:
        run_dir = folder / key.replace("/", "-").replace(".", "_")  # what follows a point would be a suffix
        update = (
            f"update={{rule: papo, kl_coef: 0.0, recompute: {str(recompute).lower()}, perception_coef: {gamma}, "
            f"entropy_coef: {entropy}, corrupted_entropy_coef: {entropy}}}"
        )
        records = train("shapes_papo", run_dir, f"steps={STEPS}", "seed=1", "learner.minibatches=2", update)
        last = records[-10:]
        keys = ("reward/mean", "perception/kl", "perception/entropy_clean", "perception/entropy_corrupted")
        figures = {key: fmean(record[key] for record in last) for key in keys}
        figures["best reward"] = max(fmean(r["reward/mean"] for r in records[n : n + 10]) for n in range(STEPS - 9))
        figures["first alarm"] = next((r["step"] for r in records if r["update/alarms"] > 0), -1)
        results.add(key, figures)

    jobs = {f"hack/{job[0]}/{job[1]}" + ("" if job[2] else "/frozen"): job for job in HACKED}
    with ThreadPoolExecutor(int(os.environ.get("JOBS", "2"))) as pool:
        for future in [pool.submit(one, key, *job) for key, job in jobs.items() if key not in results.runs]:
            future.result()
    for key in jobs:
        print(key, " ".join(f"{name} {value:.3f};" for name, value in results.runs[key].items()))


def time_steps(results: Results, folder: Path) -> None:
    """Time GRPO and PAPO_G by turns, alone on the machine. The policy does not move, so both do the same work."""
    for turn in range(TIMED_TURNS):
        for arm in ARMS[:2]:
            name = f"time/{arm.name}/{turn}"
            if name not in results.runs:
                run_dir = folder / name.replace("/", "-")
                records = train("shapes_papo", run_dir, f"steps={TIMED_STEPS}", "learner.lr=0", *arm.overrides)[5:]
                keys = ("time/step_s", "time/rollout_s", "time/learner_s", "time/corrupted_s")
                results.add(name, {key: median(record.get(key, 0.0) for record in records) for key in keys})
    for turn in range(TIMED_TURNS):
        grpo, papo = (results.runs[f"time/{arm.name}/{turn}"] for arm in ARMS[:2])
        ratio = papo["time/step_s"] / grpo["time/step_s"]
        print(f"turn {turn}: PAPO_G / GRPO = {ratio:.3f};", *(f"{k} {grpo[k]:.3f} {papo[k]:.3f};" for k in grpo))


if __name__ == "__main__":
    commands = {"compare": compare, "hack": hack, "time": time_steps}
    if len(sys.argv) != 3 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    target = Path(sys.argv[2]).absolute()
    commands[sys.argv[1]](Results(target), target.parent)
