"""Draws by earlier rewards in real runs: they train, and a killed or stopped run goes on with the same prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import rlkl
from rlkl.recipe import Recipe
from rlkl.training.checkpoint import Checkpoints
from tests.integration.runs import killed_and_resumed, make_recipe, records, untimed

STEPS = 7
PASS_RATE = {"sampler": "pass_rate", "curriculum": {"passes_at": 0.5}}
BANDIT = {"sampler": "bandit", "curriculum": {"passes_at": 0.5, "bucket_column": "answer"}}
TIMINGLESS = [{"function": "tests.integration.test_samplers:by_prompt"}]


def by_prompt(group: Any) -> list[float]:
    """Pass as many samples as the prompt says, whatever they are: no timing changes it."""
    passes = sum(map(ord, group.prompt)) % (len(group) + 1)
    return [float(number < passes) for number in range(len(group))]


def prompts(run_dir: Path) -> list[list[str]]:
    """The prompts of each step."""
    paths = sorted((run_dir / "samples").glob("step_*.parquet"))
    return [[row["prompt_id"] for row in pq.read_table(path).to_pylist()[::4]] for path in paths]


def recipe_of(run_dir: Path, model: Path, **sections: Any) -> Recipe:
    return make_recipe(run_dir, model, steps=STEPS, tracking={"samples_every": 1}, **sections)


@pytest.mark.parametrize(
    ("sections", "politely"),
    [
        ({"data": PASS_RATE, "rollout": {"schedule": "one_step_off", "workers": 2}, "learner": {"ranks": 2}}, False),
        ({"data": BANDIT, "rollout": {"max_rounds": 3}, "update": {"variant": "dapo"}}, True),
    ],
    ids=["pass_rate, one step off, two ranks, killed", "bandit, dapo, stopped"],
)
def test_a_run_goes_on_with_the_same_prompts_bit_for_bit(
    sections: dict[str, Any], politely: bool, untied_model: Path, tmp_path: Path
):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    rlkl.train(recipe_of(whole, untied_model, **sections))
    killed_and_resumed(recipe_of(cut, untied_model, **sections), after=3, politely=politely)

    assert untimed(cut) == untimed(whole)
    assert prompts(cut) == prompts(whole)
    lines = records(whole)
    assert all(line["weights/verified"] == 1 for line in lines)
    assert len({line["data/top_probability"] for line in lines}) > 1  # something was learned
    assert 0 < sum(line["data/pass_rate"] for line in lines) < STEPS
    states = [json.loads((Checkpoints(path, keep=2).latest() / "curriculum.json").read_text()) for path in (cut, whole)]
    assert states[0] == states[1]


@pytest.mark.parametrize("variant", ["grpo", "dapo"])
def test_in_a_stream_no_timing_and_no_kill_changes_the_prompts(variant: str, untied_model: Path, tmp_path: Path):
    stream = {"schedule": "stream", "max_staleness": 1, "workers": 2, "max_new_tokens": 16}
    sections = {"data": PASS_RATE, "rollout": stream, "rewards": TIMINGLESS, "update": {"variant": variant}}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    rlkl.train(recipe_of(whole, untied_model, **sections))
    killed_and_resumed(recipe_of(cut, untied_model, **sections), after=4)

    assert prompts(cut) == prompts(whole)
    keys = ("data/pass_rate", "data/top_probability", "rollout/equal_fraction", "reward/mean")
    assert [[line[key] for key in keys] for line in records(cut)] == [
        [line[key] for key in keys] for line in records(whole)
    ]
    assert max(line["rollout/staleness_max"] for line in records(whole)) == 1
    assert min(len(of_step) for of_step in prompts(whole)) == 8
