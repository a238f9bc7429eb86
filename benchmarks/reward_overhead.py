"""Measure the overhead of scoring in a separate process: per score, and per training step with sampling in parallel.

First, 10,000 trivial scores in mode process: the time of a round trip minus the function itself. Then the quickstart
with a trivial reward, alternately inline and in a process: the time of a step, and its wait for rewards after the last
completion.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import rlkl
from rlkl.recipe import RewardSection
from rlkl.rewards import load_rewards
from rlkl.rewards.function.arguments import Sample, State, make_call
from rlkl.tracking.records.reading import read_metrics
from rlkl.types import Completion, Prompt

SCORES = 10_000
STEPS = 16
WARM_UP = 4
TURNS = 2
REWARD = "def trivial(completion, answer):\n    return float(completion == answer)\n"


def main(overrides: list[str]) -> None:
    """Print both tables."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trivial.py"
        file.write_text(REWARD)
        _one_score(file)
        _one_step(file, overrides)


def _one_score(file: Path) -> None:
    section = RewardSection(function=f"{file}:trivial", mode="process")
    rewards = load_rewards([section])
    rewards.start()
    prompt = Prompt(id="row-0", text="7+12=", token_ids=(1, 2, 3), columns={"answer": "19"})
    completion = Completion(token_ids=(4, 5, 6), logprobs=(-1.0, -1.0, -1.0), finish_reason="stop", text="19")
    state = State(step=1, steps=1, epoch=0.0, seed=0)
    call = make_call(rewards.rewards[0].parameters, [Sample(prompt=prompt, completion=completion, rng_seed=0)], state)
    pool, beyond_s = rewards.pool_of("trivial"), []
    for _ in range(SCORES):
        start = time.perf_counter()
        answer = pool.submit(call).result()
        beyond_s.append(time.perf_counter() - start - answer.seconds)
    start = time.perf_counter()
    scoring = rewards.open_round([prompt] * (SCORES // 8), samples=8, state=state, draws=range(SCORES // 8))
    for index in range(SCORES):
        scoring.add(index, completion)
    scoring.finish()
    whole_s = time.perf_counter() - start
    rewards.close()
    beyond_s.sort()
    print(
        f"{SCORES:,} scores in one process, one after the other: {1e3 * median(beyond_s):.3f} ms each beyond the "
        f"function at the median, {1e3 * beyond_s[int(0.99 * SCORES)]:.3f} ms at 99%"
    )
    print(f"the same as one round: {whole_s:.2f} s, {1e3 * whole_s / SCORES:.3f} ms a score")


def _one_step(file: Path, overrides: list[str]) -> None:
    """Time inline and process by turns, so that other work of the machine affects both."""
    records: dict[str, list[dict[str, float]]] = {"inline": [], "process": []}
    for turn in range(TURNS):
        for mode, found in records.items():
            run = file.parent / f"{mode}-{turn}"
            recipe = rlkl.load_recipe(
                "quickstart",
                f"steps={STEPS}",
                f"run.dir={run}",
                f"rewards=[{{function: '{file}:trivial', mode: {mode}}}]",
                "tracking={wandb: off, console: plain}",
                *overrides,
            )
            rlkl.train(recipe)
            found += read_metrics(run / "metrics.jsonl")[WARM_UP:]
    print(f"\nmedian of {len(records['inline'])} steps:")
    for mode, found in records.items():
        parts = (f"{part} {1e3 * median(r[f'time/{part}_s'] for r in found):.1f} ms" for part in PARTS)
        print(f"{mode:>8}: {', '.join(parts)}")


PARTS = ("step", "rollout", "reward", "learner")


if __name__ == "__main__":
    main(sys.argv[1:])
