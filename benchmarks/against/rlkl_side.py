"""rlkl's side of the comparison.

On given completions it is the learner's `prepare` and `step`, in this process. A whole step is one of `rlkl.train`:
vLLM samples in a Ray actor, the learner is another, weights are published and proven.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

import rlkl
from benchmarks.against.measured import CLIP, LR, MAX_GRAD_NORM, Measured, peak_mib
from benchmarks.against.workload import Case, Workload
from rlkl.learner.learner import Learner, LearnerSpec
from rlkl.recipe import Recipe
from rlkl.tracking.records.reading import read_metrics
from rlkl.types import Completion, Example, Prompt, Rollout

REWARD = "def length(completion):\n    return float(len(completion) % 7)\n"
"""The reward of a whole step; `benchmarks.against.trl_side` has the same one."""


def run(workload: Workload, *, steps: int) -> Measured:
    """Train for a first step and ``steps`` measured ones."""
    if workload.case.whole:
        return _run_whole(workload, steps=1 + steps)
    imports_mib = peak_mib()
    records, seconds = train(build_learner(workload, steps=1 + steps), workload, steps=1 + steps)
    return Measured(
        seconds=seconds[1:],
        tokens=sum(map(len, workload.completions)),
        peak_mib=peak_mib(),
        imports_mib=imports_mib,
        loss=records[0]["loss/total"],
        grad_norm=records[0]["optim/grad_norm"],
    )


def build_learner(workload: Workload, *, steps: int, device: str = "cpu") -> Learner:
    """Return the learner of a run of ``steps``."""
    return Learner(
        LearnerSpec(
            recipe=recipe_of(workload, steps=steps, device=device),
            model_path=workload.policy,
            reference_path=workload.reference if workload.case.kl_coef > 0 else None,
        )
    )


def train(learner: Learner, workload: Workload, *, steps: int) -> tuple[list[dict[str, float]], list[float]]:
    """Return the metrics and the seconds of each step. Work that a CUDA device still has to do counts."""
    examples = list(_examples(workload))
    records, seconds = [], []
    for step in range(steps):
        start = time.perf_counter()
        records.append(learner.prepare(examples, step=step) | learner.step(step))
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return records, seconds


def _run_whole(workload: Workload, *, steps: int) -> Measured:
    folder = workload.folder / "rlkl"
    folder.mkdir(exist_ok=True)
    reward, data = folder / "reward.py", folder / "prompts.jsonl"
    reward.write_text(REWARD)
    data.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in workload.texts))
    recipe = recipe_of(workload, steps=steps, device="cpu").model_dump()
    recipe["run"] = {"name": "benchmark", "dir": tempfile.mkdtemp(dir=folder) + "/run"}
    recipe["data"] = {"source": str(data), "max_prompt_tokens": workload.case.prompt_tokens}
    recipe["rewards"] = [{"function": f"{reward}:length"}]
    recipe["model"]["reference"] = workload.reference if workload.case.kl_coef > 0 else None
    for section in ("rollout", "learner"):
        recipe[section]["threads"] = torch.get_num_threads()
    recipe["tracking"] = {"wandb": "off", "console": "plain"}
    rlkl.train(rlkl.Recipe.model_validate(recipe))
    records = read_metrics(Path(recipe["run"]["dir"]) / "metrics.jsonl")[1:]
    return Measured(
        seconds=[record["time/step_s"] for record in records],
        tokens=workload.case.rows * sum(record["rollout/length_mean"] for record in records) / len(records),
    )


def recipe_of(workload: Workload, *, steps: int, device: str) -> Recipe:
    """Return the recipe of the work, for the learner alone."""
    case: Case = workload.case
    return Recipe.model_validate(
        {
            "model": {"path": workload.policy, "dtype": case.dtype},
            "data": {"source": "unused.jsonl"},
            "update": {
                "rule": "grpo",
                "kl_coef": case.kl_coef,
                "clip_low": CLIP,
                "clip_high": CLIP,
                "correction": "none",
            },
            "rollout": {
                "prompts_per_step": case.prompts,
                "samples_per_prompt": case.samples,
                "max_new_tokens": case.answer_tokens,
            },
            "learner": {
                "lr": LR,
                "max_grad_norm": MAX_GRAD_NORM,
                "micro_batch_tokens": case.micro_batch_tokens,
                "device": device,
            },
            "steps": steps,
        }
    )


def _examples(workload: Workload) -> Iterator[Example]:
    """Yield the batch. The sampler's log-probs go into metrics only, so those of a uniform sampler will do."""
    case = workload.case
    logprob = -math.log(case.shape.vocabulary)
    for row, (token_ids, reward) in enumerate(zip(workload.completions, workload.rewards, strict=True)):
        group, sample = divmod(row, case.samples)
        completion = Completion(token_ids=token_ids, logprobs=(logprob,) * len(token_ids), finish_reason="length")
        yield Example(
            prompt=Prompt(id=str(group), text="", token_ids=workload.prompts[group]),
            rollout=Rollout(
                sample_index=sample, completion=completion, reward=reward, components={}, weights_version=0
            ),
            group=group,
        )
