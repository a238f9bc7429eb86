"""Learners on the CPU and on the GPU with the same weights and the same batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlkl.learner.learner import Learner, LearnerSpec
from rlkl.recipe import Recipe
from rlkl.types import Completion, Example, Prompt, Rollout
from tests.models import deep_qwen3

LENGTHS = (1, 3, 7, 12, 20, 33, 50, 64)
"""Response tokens of the samples of each prompt: long-tailed."""
PROMPTS = 3
FIRST_ID, LAST_ID = 3, 60


def write_model(folder: Path) -> str:
    """Write an untrained Qwen3 of 24 layers, so that rounding adds up as in a real model."""
    return str(deep_qwen3(folder))


def build(path: str, device: str, dtype: str, **sections: Any) -> Learner:
    """Return a learner of the model in ``path``."""
    recipe = Recipe.model_validate(
        {
            "model": {"path": path, "dtype": dtype, **sections.pop("model", {})},
            "data": {"source": "unused.jsonl"},
            "rollout": {"max_new_tokens": max(LENGTHS)},
            "learner": {
                "device": device,
                "lr": 1e-4,
                "max_grad_norm": 1e9,
                "micro_batch_tokens": 512,
                **sections.pop("learner", {}),
            },
            **sections,
        }
    )
    return Learner(LearnerSpec(recipe=recipe, model_path=path))


def examples() -> list[Example]:
    """Return three prompts with eight completions each, of `LENGTHS` tokens."""
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(FIRST_ID, LAST_ID, (count,), generator=generator).tolist())

    found = []
    for group in range(PROMPTS):
        prompt = Prompt(id=str(group), text="", token_ids=ids(5 + 9 * group))
        for sample, length in enumerate(LENGTHS):
            completion = Completion(token_ids=ids(length), logprobs=(-4.0,) * length, finish_reason="stop")
            reward = float(torch.rand((), generator=generator))
            rollout = Rollout(
                sample_index=sample, completion=completion, reward=reward, components={}, weights_version=0
            )
            found.append(Example(prompt=prompt, rollout=rollout, group=group))
    return found


def train(learner: Learner) -> tuple[dict[str, float], Tensor]:
    """Make one step; return its metrics and its gradient as one float32 vector on the CPU."""
    metrics = learner.prepare(examples(), step=0) | learner.step(0)
    gradients = [p.grad for p in learner._optimization.trained.values() if p.grad is not None]
    assert gradients, "the gradients of the last step are kept until the next one"
    return metrics, torch.cat([gradient.detach().float().cpu().flatten() for gradient in gradients])


def distance(one: Tensor, other: Tensor) -> float:
    """Return the relative difference of two vectors."""
    return float((one - other).norm() / other.norm())
