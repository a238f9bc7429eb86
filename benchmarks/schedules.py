"""Compare simulated schedules with real ones: measure an alternating run, predict all schedules from it, run them.

The engine is real vLLM with a pause in each iteration, the learner is real and pauses once a step, so that their
seconds are those of a larger model, and the machine's other load matters little. Completions are long-tailed: a random
model ends each with the same chance, about 1 in 20, at every token. Engines have room for all sequences, so that a
publish need not wait for a free place.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import rlkl
from benchmarks.timed.parts import EACH_MS, FIXED_MS
from rlkl.commands.plan_measured import WARM_UP, read_run
from rlkl.costs.setting import ALTERNATE, SCHEDULES, Simulated
from rlkl.costs.simulation import simulate
from rlkl.system.compat import ensure_torch_extras
from rlkl.tasks.characters import EOS_ID, character_tokenizer, small_qwen3_config
from rlkl.tracking.records.reading import read_metrics

REWARD = "def length(completion):\n    return float(len(completion) % 7)\n"
WAITED, IDLE, STALE, OLDEST = (
    "time/learner_waited_s",
    "time/rollout_idle_s",
    "rollout/staleness_mean",
    "rollout/staleness_max",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print measured against predicted seconds, waiting and staleness of each schedule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", nargs="+", default=SCHEDULES, choices=SCHEDULES)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--learner-s", type=float, default=3.0, help="pause of the learner in a step")
    parser.add_argument("--iteration-ms", type=float, nargs=2, default=(120.0, 2.0), metavar=("FIXED", "EACH"))
    parser.add_argument("--staleness", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="folder for the runs, which are otherwise removed")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args(arguments)
    os.environ[FIXED_MS], os.environ[EACH_MS] = map(str, options.iteration_ms)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        write_inputs(folder)
        print(HEADING)
        alternate = _train(folder, ALTERNATE, options)
        measured = read_run(alternate)
        law = measured.iteration
        for schedule in options.schedules:
            run_dir = alternate if schedule == ALTERNATE else _train(folder, schedule, options)
            predicted = simulate(measured.setting(recipe_of(folder, schedule, options)), schedule, steps=200)
            print(line(schedule, read_metrics(run_dir / "metrics.jsonl"), predicted), flush=True)
        print(
            f"an iteration takes {law.fixed * 1e3:.1f} ms + {law.each * 1e3:.2f} ms for each sequence, the learner "
            f"{measured.learner.fixed:.2f} s + {measured.learner.each * 1e3:.3f} ms for each token, "
            f"publishing {measured.publish_s:.2f} s, other work {measured.other_s:.2f} s"
        )


HEADING = (
    f"{'measured / predicted':<14}{'step':>20}{'error':>8}{'learner waits':>20}{'engines idle':>20}"
    f"{'staleness':>16}{'at most':>10}"
)


def line(schedule: str, records: Sequence[Mapping[str, float]], predicted: Simulated) -> str:
    """Return the row of a schedule: means over the steps after the warm-up and before the end.

    Towards its end a stream begins no more groups than the run still trains on.
    """
    rows = records[max(WARM_UP, predicted.warm_up) : len(records) - predicted.staleness_max]
    step_s = fmean(row["time/step_s"] for row in rows)

    def both(key: str, expected: float, unit: str = " s") -> str:
        found = f"{fmean(row[key] for row in rows):.2f}" if all(key in row for row in rows) else "-"
        return f"{found} / {expected:.2f}{unit}"

    return (
        f"{schedule:<14}{both('time/step_s', predicted.seconds):>20}{predicted.seconds / step_s - 1:>+8.1%}"
        f"{both(WAITED, predicted.learner_idle * predicted.seconds):>20}"
        f"{both(IDLE, predicted.rollout_idle * predicted.seconds):>20}"
        f"{both(STALE, predicted.staleness_mean, ''):>16}"
        f"{max(row.get(OLDEST, 0.0) for row in rows):>5.0f} / {predicted.staleness_max}"
    )


def recipe_of(folder: Path, schedule: str, options: argparse.Namespace) -> rlkl.Recipe:
    """Return the recipe of a schedule; ``options``: those of the command line."""
    file = folder / "schedules.yaml"
    return rlkl.load_recipe(
        file,
        f"run.dir={folder / schedule}",
        f"rollout.schedule={schedule}",
        f"rollout.max_staleness={options.staleness}",
        f"steps={options.steps}",
        f"update.seconds={options.learner_s}",
        *options.overrides,
    )


def _train(folder: Path, schedule: str, options: argparse.Namespace) -> Path:
    rlkl.train(recipe_of(folder, schedule, options))
    return folder / schedule


def write_inputs(folder: Path) -> None:
    """Write a random model, a reward and a recipe to ``folder``."""
    ensure_torch_extras()
    import torch
    from transformers import GenerationConfig, Qwen3ForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    config = small_qwen3_config(tied=True)
    config.initializer_range = 0.02
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder / "model")
    character_tokenizer().save_pretrained(folder / "model")
    GenerationConfig(eos_token_id=[EOS_ID, *range(3, 7)]).save_pretrained(folder / "model")
    (folder / "reward.py").write_text(REWARD)
    (folder / "schedules.yaml").write_text(
        f"""
seed: 0
model: {{path: {folder / "model"}}}
data: {{source: "task:arithmetic", max_prompt_tokens: 16}}
rewards: [{{function: {folder / "reward.py"}:length}}]
rollout:
  engine: benchmarks.timed.parts:SlowVllm
  workers: 2
  prompts_per_step: 6
  samples_per_prompt: 4
  max_new_tokens: 150
  threads: 1
  vllm: {{max_num_seqs: 64}}
update: {{rule: "benchmarks.timed.parts:SlowRule"}}
learner: {{lr: 1.0e-6, threads: 1}}
tracking: {{samples_every: 1, console: plain, hacking_watch: false}}
checkpoint: {{every: 1000}}
"""
    )


if __name__ == "__main__":
    main()
