"""rlkl's side of the comparison: the learner's `prepare` and `step`, in this process."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from benchmarks.against.measured import CLIP, LR, MAX_GRAD_NORM, Measured, peak_mib
from benchmarks.against.workload import Case, Workload
from rlkl.learner.learner import Learner, LearnerSpec
from rlkl.recipe import Recipe
from rlkl.types import Completion, Example, Prompt, Rollout


def run(workload: Workload, *, steps: int) -> Measured:
    """Train for a first step and ``steps`` measured ones."""
    imports_mib = peak_mib()
    recipe = _recipe(workload, steps=1 + steps)
    learner = Learner(
        LearnerSpec(
            recipe=recipe,
            model_path=workload.policy,
            reference_path=workload.reference if workload.case.kl_coef > 0 else None,
        )
    )
    examples = list(_examples(workload))
    records, seconds = [], []
    for step in range(1 + steps):
        start = time.perf_counter()
        records.append(learner.prepare(examples, step=step) | learner.step(step))
        seconds.append(time.perf_counter() - start)
    return Measured(
        seconds=seconds[1:],
        peak_mib=peak_mib(),
        imports_mib=imports_mib,
        loss=records[0]["loss/total"],
        grad_norm=records[0]["optim/grad_norm"],
    )


def _recipe(workload: Workload, *, steps: int) -> Recipe:
    case: Case = workload.case
    return Recipe.model_validate(
        {
            "model": {"path": workload.policy, "dtype": case.dtype},
            "data": {"source": "unused.jsonl"},
            "update": {"rule": "grpo", "kl_coef": case.kl_coef, "clip_low": CLIP, "clip_high": CLIP},
            "rollout": {
                "prompts_per_step": case.prompts,
                "samples_per_prompt": case.samples,
                "max_new_tokens": case.answer_tokens,
            },
            "learner": {
                "lr": LR,
                "max_grad_norm": MAX_GRAD_NORM,
                "micro_batch_tokens": case.micro_batch_tokens,
                "device": "cpu",
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
