"""Draws by earlier rewards in the real loop: killed runs, schedules, and what a checkpoint holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlkl.errors import CheckpointError, RecipeError
from rlkl.recipe.io import load_recipe
from rlkl.tracking.records.reading import read_metrics
from rlkl.training.loop import Trainer
from tests.scheduled import Delays, build, hands_of, killed_and_resumed

PASS_RATE = {"source": "task:arithmetic", "sampler": "pass_rate", "curriculum": {"passes_at": 2.0}}
BANDIT = {
    "source": "task:arithmetic",
    "sampler": "bandit",
    "curriculum": {"passes_at": 2.0, "bucket_column": "answer"},
}
SAMPLERS = pytest.mark.parametrize("data", [PASS_RATE, BANDIT], ids=["pass_rate", "bandit"])
SCHEDULES = pytest.mark.parametrize("schedule", ["alternate", "one_step_off"])


def trained(run: Trainer) -> dict[int, list[Any]]:
    return {
        step: [(example.rollout.draw, example.prompt.id, example.rollout.completion) for example in examples]
        for step, examples in hands_of(run).trained.items()
    }


def records(run_dir: Path) -> list[dict[str, float]]:
    lines = read_metrics(run_dir / "metrics.jsonl")
    return [{key: line[key] for key in line if key.startswith(("data/", "reward/", "rollout/equal"))} for line in lines]


@SAMPLERS
@SCHEDULES
@pytest.mark.parametrize("killed_in", [1, 3, 4])
def test_a_killed_run_draws_and_samples_as_one_that_was_never_killed(
    data: dict[str, Any], schedule: str, killed_in: int, tmp_path: Path
):
    sections = {"data": data, "rollout": {"schedule": schedule}}
    whole = build(tmp_path / "whole", Delays(learn=0.02), **sections)
    whole.run()
    first, second = killed_and_resumed(tmp_path / "cut", after=killed_in, delays=Delays(step=0.003), **sections)

    assert trained(first) | trained(second) == trained(whole)
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    states = [
        (tmp_path / name / "checkpoints" / "step_000006" / "curriculum.json").read_text() for name in ("cut", "whole")
    ]
    assert states[0] == states[1]


@SAMPLERS
def test_a_resume_from_an_older_checkpoint_repeats_the_draws(data: dict[str, Any], tmp_path: Path):
    """The newest checkpoint is of step 4; step 5 was trained and recorded before the run was ended from outside."""
    whole = build(tmp_path, Delays(), data=data, rollout={"schedule": "one_step_off"})
    whole.run()
    (tmp_path / "checkpoints" / "step_000006").rename(tmp_path / "gone")
    again = build(tmp_path, Delays(), resume=tmp_path, data=data, rollout={"schedule": "one_step_off"})
    assert again.step == 4
    again.run()
    assert trained(again) == {step: trained(whole)[step] for step in (4, 5)}


@SAMPLERS
def test_refilled_steps_draw_by_the_batches_before(data: dict[str, Any], tmp_path: Path):
    sections = {"data": data, "rollout": {"max_rounds": 4}, "update": {"variant": "dapo"}}
    whole = build(tmp_path / "whole", Delays(), **sections)
    whole.run()
    first, second = killed_and_resumed(tmp_path / "cut", after=3, **sections)
    assert max(line["rollout/rounds"] for line in read_metrics(tmp_path / "whole" / "metrics.jsonl")) > 1
    assert trained(first) | trained(second) == trained(whole)


@SAMPLERS
def test_both_schedules_know_all_batches_before_the_one_that_they_draw(data: dict[str, Any], tmp_path: Path):
    """Batch 1 of one_step_off is sampled by version 0, but its prompts are drawn when the rewards of batch 0 are in."""
    runs = [build(tmp_path / s, Delays(), data=data, rollout={"schedule": s}) for s in ("alternate", "one_step_off")]
    for run in runs:
        run.run()
    prompts = [[prompt for _, prompt, _ in trained(run)[1]] for run in runs]
    assert prompts[0] == prompts[1]


def of_length(completion: str) -> float:
    """Reward the length, which depends on the seed of a completion alone: no timing changes it."""
    return float(len(completion) > 3)


STREAM = {"schedule": "stream", "max_staleness": 1}


@SAMPLERS
@pytest.mark.parametrize("variant", ["grpo", "dapo"])
@pytest.mark.parametrize("killed_in", [2, 5])
def test_in_a_stream_rewards_decide_the_draws_and_timing_does_not(
    data: dict[str, Any], variant: str, killed_in: int, tmp_path: Path
):
    """With dapo about half of the groups are rejected."""
    data = {**data, "curriculum": {**data["curriculum"], "passes_at": 1.0}}
    sections = {"data": data, "rollout": STREAM, "update": {"variant": variant}, "steps": 10, "reward_of": of_length}
    whole = build(tmp_path / "whole", Delays(), **sections)
    whole.run()
    slow = Delays(seed=killed_in, learn=0.03, step=0.003, reward=0.005)
    first, second = killed_and_resumed(tmp_path / "cut", after=killed_in, delays=slow, **sections)

    def prompts(run: Trainer) -> dict[int, list[Any]]:
        return {step: [one[:2] for one in rows] for step, rows in trained(run).items()}

    assert prompts(first) | prompts(second) == prompts(whole)
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    assert max(len(rows) for rows in prompts(whole).values()) == 8
    # Without a curriculum the same draws are of other prompts.
    uniform = build(tmp_path / "uniform", Delays(), **{**sections, "data": {}})
    uniform.run()
    assert prompts(uniform) != prompts(whole)


def test_uniform_draws_leave_no_file(tmp_path: Path):
    run = build(tmp_path, Delays())
    run.run()
    assert list(tmp_path.rglob("curriculum.json")) == []
    assert not any(key in line for line in records(tmp_path) for key in ("data/pass_rate", "data/top_probability"))


@pytest.mark.parametrize("text", ["{", "{}", json.dumps({"known": {}, "drawn": []})])
def test_a_file_that_cannot_be_read_is_refused(text: str, tmp_path: Path):
    run = build(tmp_path, Delays(), data=PASS_RATE)
    run.run()
    (tmp_path / "checkpoints" / "step_000006" / "curriculum.json").write_text(text)
    checkpoint = tmp_path / "checkpoints" / "step_000006"
    from rlkl.training.curriculum import restore_curriculum

    with pytest.raises(CheckpointError, match=r"curriculum\.json cannot be read"):
        restore_curriculum(checkpoint, run.source)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["data.sampler=random"], "data.sampler = 'random'"),
        (["data.sampler=bandit"], r"set curriculum: \{bucket_column: COLUMN\}"),
        (["data.curriculum={floor: 0.2}"], "has no effect with sampler = uniform"),
        (["data.sampler=pass_rate", "data.curriculum={loss: square}"], r"curriculum\.loss has no effect"),
        (["data.sampler=pass_rate", "data.curriculum={floor: 0}"], r"data\.curriculum\.floor"),
        (["data.sampler=pass_rate", "data.curriculum={bucket_column: answer}"], r"curriculum\.bucket_column has no"),
        (["data.sampler=bandit", "data.curriculum={bucket_column: answer, loss: log}"], r"curriculum\.loss = 'log'"),
        (["data.sampler=bandit", "data.curriculum={bucket_column: answer, discount: 0}"], r"curriculum\.discount"),
    ],
)
def test_settings_that_cannot_work_are_refused(keys: list[str], words: str):
    with pytest.raises(RecipeError, match=words):
        load_recipe("quickstart", *keys)


def test_stored_pairs_have_no_rewards_to_learn_from():
    with pytest.raises(RecipeError, match="stored pairs have none"):
        load_recipe("reviews_dpo", "data.sampler=pass_rate")


def test_the_evaluation_takes_every_row_once():
    recipe = load_recipe(
        "quickstart",
        "data.sampler=bandit",
        "data.curriculum={bucket_column: answer}",
        "eval={data: {source: task:arithmetic/test}}",
    )
    assert recipe.eval_data is not None
    assert (recipe.eval_data.sampler, recipe.eval_data.curriculum) == ("uniform", None)
