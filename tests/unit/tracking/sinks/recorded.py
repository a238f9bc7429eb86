"""Runs of the tracker for tests of sinks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlkl.errors import RewardError
from rlkl.recipe import Recipe
from rlkl.tracking.tracker import RunSummary, Tracker
from rlkl.types import Completion, Prompt, Rollout, RolloutGroup

HOSTILE = "<script>alert(1)</script> | x\n# y"


def recipe(**tracking: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "run": {"name": "sums"},
            "steps": 6,
            "model": {"path": "task:arithmetic"},
            "data": {"source": "task:arithmetic"},
            "tracking": {"wandb": "off", "console": "plain", "samples_every": 2, "samples_kept": 1, **tracking},
        }
    )


def groups(step: int) -> list[RolloutGroup]:
    rollouts = tuple(
        Rollout(
            sample_index=index,
            completion=Completion(token_ids=(5,), logprobs=(-0.5,), finish_reason="stop", text=f"{step} {HOSTILE}"),
            reward=0.5,
            components={"gold": 0.5},
            weights_version=step,
        )
        for index in range(2)
    )
    return [RolloutGroup(prompt=Prompt(id="p", text="1+1=", token_ids=(3,)), rollouts=rollouts)]


def record(
    run_dir: Path, used: Recipe, *, first: int, last: int, run_id: str | None = None, fails: bool = False
) -> str:
    """Record the steps with index ``first`` to ``last`` - 1; return the id of the run."""
    tracker = Tracker(run_dir, used, run_id=run_id, first_step=first)
    for step in range(first, last):
        tracker.log(step, {"reward/mean": (step + 1) / 8 + (first > 0)}, groups(step))
    if fails:
        tracker.fail(RewardError("reward 'gold' raised"))
    else:
        tracker.finish(RunSummary(interrupted=last < used.steps, policy_dir=None))
    return tracker.run_id
