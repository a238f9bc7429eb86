"""A source that learns: what a draw depends on, what a checkpoint keeps, and what it leaves as it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from rlkl.data.curriculum.source import CurriculumSource, build_source, pass_rate
from rlkl.data.prompt_source import PromptSource
from rlkl.data.report import DataReport
from rlkl.recipe import DataSection
from rlkl.tracking.metrics.registry import check_known
from rlkl.types import Prompt, RolloutGroup
from tests.builders import make_group

COUNT = 12
BANDIT = {"sampler": "bandit", "curriculum": {"bucket_column": "level", "bins": 3}}
PASS_RATE = {"sampler": "pass_rate"}
PROMPTS = [Prompt(id=f"p{n}", text="", token_ids=(n,), columns={"level": n}) for n in range(COUNT)]
REPORT = DataReport(total=COUNT, kept=COUNT, empty=0, malformed=0, too_long=0, image=0, examples=())


def source(keys: dict[str, Any], *, seed: int = 0, shuffle: bool = True) -> PromptSource:
    section = DataSection.model_validate({"source": "x.jsonl", "shuffle": shuffle, **keys})
    return build_source(section, PROMPTS, REPORT, seed=seed)


def group_of(prompt: Prompt, draw: int, rewards: Sequence[float]) -> RolloutGroup:
    made = make_group(prompt.id, list(rewards))
    return RolloutGroup(prompt=prompt, rollouts=tuple(replace(rollout, draw=draw) for rollout in made.rollouts))


def batch(of: PromptSource, position: int) -> tuple[list[str], list[RolloutGroup]]:
    """Draw four prompts; those of the middle bucket pass half of the time, the others never."""
    drawn = of.draw(position, 4)
    rewards = [[1.0, 1.0, 0.0, 0.0] if prompt.token_ids[0] // 4 == 1 else [0.0] * 4 for prompt in drawn]
    groups = [group_of(prompt, position + n, rewards[n]) for n, prompt in enumerate(drawn)]
    return [prompt.id for prompt in drawn], groups


def run(of: PromptSource, batches: range) -> list[Any]:
    found = []
    for number in batches:
        ids, groups = batch(of, 4 * number)
        found.append((ids, of.observe(groups)))
    return found


def test_uniform_draws_are_those_of_the_plain_source_and_keep_no_state():
    built, plain = source({}), PromptSource(PROMPTS, REPORT, shuffle=True, seed=0)
    assert type(built) is PromptSource
    for position in range(0, 40, 5):
        drawn = built.draw(position, 5)
        assert drawn == plain.take(position, 5)
        assert built.observe([group_of(prompt, position + n, [1.0, 0.0]) for n, prompt in enumerate(drawn)]) == {}
    assert built.state(40) == {}


@pytest.mark.parametrize("keys", [PASS_RATE, BANDIT], ids=["pass_rate", "bandit"])
def test_the_stream_of_epochs_stays_for_probes_and_evaluations(keys: dict[str, Any]):
    built, plain = source(keys), PromptSource(PROMPTS, REPORT, shuffle=True, seed=0)
    run(built, range(3))
    assert built.take(0, 30) == plain.take(0, 30)
    assert built.fingerprint == plain.fingerprint
    assert len(built) == COUNT


@pytest.mark.parametrize("keys", [PASS_RATE, BANDIT], ids=["pass_rate", "bandit"])
def test_a_draw_is_decided_once(keys: dict[str, Any]):
    built = source(keys)
    before = built.draw(4, 4)
    run(built, range(1))
    assert built.draw(4, 4) == before
    assert built.draw(5, 1) == [before[1]]


@pytest.mark.parametrize("keys", [PASS_RATE, BANDIT], ids=["pass_rate", "bandit"])
def test_draws_depend_on_the_seed_and_on_rewards(keys: dict[str, Any]):
    assert run(source(keys), range(8)) == run(source(keys), range(8))
    assert run(source(keys), range(8)) != run(source(keys, seed=1), range(8))
    taught, untaught = source(keys), source(keys)
    run(taught, range(8))
    assert taught.draw(32, 40) != untaught.draw(32, 40)


@pytest.mark.parametrize("keys", [PASS_RATE, BANDIT], ids=["pass_rate", "bandit"])
def test_prompts_in_the_middle_are_drawn_more_often(keys: dict[str, Any]):
    built = source(keys)
    run(built, range(40))
    drawn = [prompt.token_ids[0] for prompt in built.draw(160, 400)]
    assert sum(number // 4 == 1 for number in drawn) / len(drawn) > 0.6  # a third of the prompts


@pytest.mark.parametrize("keys", [PASS_RATE, BANDIT], ids=["pass_rate", "bandit"])
@pytest.mark.parametrize("finished", [0, 1, 5])
@pytest.mark.parametrize("ahead", [0, 1])
def test_a_resumed_source_draws_as_one_that_was_never_stopped(keys: dict[str, Any], finished: int, ahead: int):
    """``ahead`` batches are sampled when the checkpoint is written, and are given to the resumed source again."""
    whole, cut = source(keys), source(keys)
    wanted = run(whole, range(12))
    assert run(cut, range(finished)) == wanted[:finished]
    pending = []
    for number in range(finished, finished + ahead):
        pending.append(batch(cut, 4 * number)[1])
        cut.observe(pending[-1])
    cut.draw(4 * (finished + ahead), 2)  # begun, and not finished

    saved = json.loads(json.dumps(cut.state(4 * finished)))
    resumed = source(keys)
    resumed.restore(saved)

    for number, groups in enumerate(pending, start=finished):
        assert [prompt.id for prompt in resumed.draw(4 * number, 4)] == wanted[number][0]
        assert resumed.observe(groups) == wanted[number][1]
    assert run(resumed, range(finished + ahead, 12)) == wanted[finished + ahead :]
    assert resumed.state(48) == whole.state(48)


def test_saving_more_often_changes_nothing():
    often, seldom = source(BANDIT), source(BANDIT)
    for number in range(10):
        assert run(often, range(number, number + 1)) == run(seldom, range(number, number + 1))
        often.state(4 * (number + 1))
    assert often.state(40) == seldom.state(40)
    assert often.state(40)["drawn"] == []


def test_metrics_are_those_of_the_batch():
    built = source(PASS_RATE)
    drawn = built.draw(0, 3)
    groups = [group_of(prompt, n, [1.0] * n + [0.0] * (2 - n)) for n, prompt in enumerate(drawn)]
    metrics = built.observe(groups)
    check_known(metrics)
    assert metrics["data/pass_rate"] == 0.5
    assert metrics["data/middle_fraction"] == pytest.approx(1 / 3)
    assert isinstance(built, CurriculumSource)


def test_groups_without_a_reward_teach_nothing():
    built = source(PASS_RATE)
    before = built.state(0)["known"]
    drawn = built.draw(0, 2)
    metrics = built.observe([group_of(prompt, n, [float("nan")] * 2) for n, prompt in enumerate(drawn)])
    assert metrics == {"data/top_probability": pytest.approx(1 / COUNT)}
    assert built.state(2)["known"] == before


def test_a_pass_is_a_reward_before_normalisation():
    group = group_of(PROMPTS[0], 0, [-1.0, 1.0, float("nan")])
    raw = [replace(rollout, raw_reward=reward) for rollout, reward in zip(group.rollouts, [0.5, 0.4, 0.9], strict=True)]
    normalised = replace(group, rollouts=tuple(raw))
    assert pass_rate(group, 1.0) == 0.5
    assert pass_rate(normalised, 0.5) == 0.5
    assert pass_rate(normalised, 0.4) == 1.0
