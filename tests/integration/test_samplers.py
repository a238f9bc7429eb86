"""Draws by earlier rewards in real runs: they train, and a killed or stopped run goes on with the same prompts."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import rlkl
from rlkl.data.curriculum.source import build_source
from rlkl.data.prompts import Encoder, load_prompts
from rlkl.recipe import Recipe
from rlkl.tasks.characters import character_tokenizer
from rlkl.training.checkpoint import Checkpoints
from rlkl.types import RolloutGroup
from tests.builders import make_group
from tests.integration.runs import killed_and_resumed, make_recipe, records, untimed

STEPS = 7
PASS_RATE = {"sampler": "pass_rate", "curriculum": {"passes_at": 0.5}}
BANDIT = {"sampler": "bandit", "curriculum": {"passes_at": 0.5, "bucket_column": "answer"}}
TIMINGLESS = [{"function": "tests.integration.test_samplers:by_prompt"}]


def by_prompt(group: Any) -> list[float]:
    """Pass as many samples as the prompt says, whatever they are: no timing changes it."""
    return passes_of(group.prompt, len(group))


def passes_of(prompt: str, count: int) -> list[float]:
    """Return the rewards of `by_prompt`."""
    passes = sum(map(ord, prompt)) % (count + 1)
    return [float(number < passes) for number in range(count)]


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


def computed_draws(recipe: Recipe, count: int) -> list[str]:
    """Return the prompts of the first draws if rewards are those of `by_prompt`, without an engine or a clock."""
    encoder = Encoder(tokenizer=character_tokenizer())
    source = build_source(recipe, load_prompts(recipe.data, encoder, seed=recipe.seed))
    found = []
    for number in range(count):
        (prompt,) = source.draw(number, 1)
        found.append(prompt.id)
        rollouts = make_group(prompt.id, passes_of(prompt.text, 4)).rollouts
        drawn = tuple(replace(rollout, draw=number) for rollout in rollouts)
        source.observe([RolloutGroup(prompt=prompt, rollouts=drawn)])
    return found


def test_in_a_stream_neither_timing_nor_a_kill_changes_the_prompts(untied_model: Path, tmp_path: Path):
    stream = {"schedule": "stream", "max_staleness": 1, "workers": 2, "max_new_tokens": 16}
    sections = {"data": PASS_RATE, "rollout": stream, "rewards": TIMINGLESS}
    recipe = recipe_of(tmp_path / "cut", untied_model, **sections)
    killed_and_resumed(recipe, after=4)

    steps = prompts(tmp_path / "cut")
    assert [len(of_step) for of_step in steps] == [8] * STEPS
    drawn = list(chain.from_iterable(steps))
    assert drawn == computed_draws(recipe, len(drawn))
    assert drawn != computed_draws(recipe_of(tmp_path, untied_model), len(drawn))
    assert max(line["rollout/staleness_max"] for line in records(tmp_path / "cut")) == 1
