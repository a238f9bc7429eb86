"""The schedules: their seconds against sums by hand, and what must hold for any timing."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from rlkl.costs.engines import LinearLaw
from rlkl.costs.lengths import Lognormal, Recorded, Uniform
from rlkl.costs.setting import ALTERNATE, ONE_STEP_OFF, SCHEDULES, STREAM, Setting
from rlkl.costs.simulation import simulate

LONG_TAIL = Lognormal(mean=100, longest=1000, spread=0.9)


def setting(**changes: Any) -> Setting:
    values: dict[str, Any] = {
        "groups": 8,
        "samples": 4,
        "lengths": LONG_TAIL,
        "engines": 2,
        "slots": 16,
        "law": LinearLaw(1.0, 0.05),
        "learner_s": 400.0,
        "publish_s": 10.0,
        "reward_s": 3.0,
    }
    return Setting(**values | changes)


def random_setting(seed: int) -> Setting:
    chance = Random(seed)
    return setting(
        groups=chance.randint(1, 6),
        samples=chance.randint(1, 5),
        engines=chance.randint(1, 3),
        slots=chance.randint(1, 20),
        law=LinearLaw(chance.random(), 0.1 * chance.random()),
        lengths=Lognormal(mean=50, longest=400, spread=1.2 * chance.random()),
        prompt=float(chance.choice((0, 30))),
        prefill_s=chance.choice((0.0, 0.02)),
        learner_s=chance.choice((0.0, 10.0, 100.0, 1000.0)),
        learner_token_s=chance.choice((0.0, 0.01)),
        publish_s=chance.choice((0.0, 1.0, 100.0)),
        reward_s=chance.choice((0.0, 1.0, 200.0)),
        rejection=chance.choice((0.0, 0.3)),
        max_rounds=10,
        max_staleness=chance.randint(1, 4),
        jitter=chance.choice((0.0, 0.9)),
        seed=seed,
    )


@pytest.mark.parametrize("seed", range(60))
def test_staleness_never_exceeds_the_limit_under_random_delays(seed: int):
    run = random_setting(seed)
    limits = {ALTERNATE: 0, ONE_STEP_OFF: 1, STREAM: run.max_staleness}
    for schedule, limit in limits.items():
        done = simulate(run, schedule, steps=10)
        assert all(0 <= step.staleness_mean <= step.staleness_max <= limit for step in done.steps)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("seed", range(20))
def test_every_draw_is_trained_once_and_in_order_or_is_rejected(schedule: str, seed: int):
    run = random_setting(seed)
    if schedule != STREAM:  # a refill of whole batches drops what is left over
        run = replace(run, rejection=0.0)
    trained = [draw for step in simulate(run, schedule, steps=10).steps for draw in step.draws]
    assert trained == [draw for draw in range(trained[-1] + 1) if not run.rejects(draw)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("seed", range(20))
def test_tokens_are_neither_lost_nor_made(schedule: str, seed: int):
    run = random_setting(seed)
    done = simulate(run, schedule, steps=10)
    for step in done.steps:
        lengths = [run.lengths.of_group(draw, run.samples, run.seed) for draw in step.draws]
        assert step.tokens == sum(map(sum, lengths))
    decoded, trained = (sum(getattr(step, name) for step in done.steps) for name in ("decoded", "tokens"))
    last = done.steps[-1].draws[-1]
    dropped = [draw for draw in range(last) if draw not in {one for step in done.steps for one in step.draws}]
    known = trained + sum(sum(run.lengths.of_group(draw, run.samples, run.seed)) for draw in dropped)
    ahead = {ALTERNATE: run.max_rounds * run.groups, ONE_STEP_OFF: (run.max_rounds + 1) * run.groups}
    most = ahead.get(schedule, (run.max_staleness + 1) * run.groups)
    beyond = sum(sum(run.lengths.of_group(last + more, run.samples, run.seed)) for more in range(1, most + 1))
    assert known <= decoded <= known + beyond


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_seed_decides_everything(schedule: str):
    run = random_setting(7)
    assert simulate(run, schedule) == simulate(run, schedule)
    assert simulate(run, schedule) != simulate(replace(run, seed=8), schedule)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_seconds_are_divided_without_a_rest(schedule: str):
    for step in simulate(setting(), schedule).steps:
        assert step.learner_s + step.publish_s + step.learner_waited_s == pytest.approx(step.seconds)
        assert 0 <= step.rollout_idle_s <= step.seconds


EVEN = setting(lengths=Recorded(groups=((100,),)), samples=1, engines=1, slots=8, law=LinearLaw(1.0))
"""All completions have 100 tokens and run together: 100 seconds for a batch, and 3 for its scores."""


def test_alternate_is_the_sum_of_its_parts():
    done = simulate(EVEN, ALTERNATE)
    assert done.seconds == pytest.approx(100 + 3 + 400 + 10)
    assert done.learner_idle == pytest.approx(103 / 513)
    assert done.rollout_idle == pytest.approx(413 / 513)
    assert (done.staleness_mean, done.staleness_max) == (0, 0)
    assert done.tokens_per_s == pytest.approx(8 * 100 / 513)


@pytest.mark.parametrize("learner_s", [20.0, 103.0, 400.0])
def test_one_step_off_is_the_longer_side_and_the_publish(learner_s: float):
    done = simulate(replace(EVEN, learner_s=learner_s), ONE_STEP_OFF)
    assert [step.seconds for step in done.steady] == pytest.approx([max(103, learner_s) + 10] * 8)
    assert done.steps[0].seconds == pytest.approx(103 + max(103, learner_s) + 10), "there is no batch yet"
    assert [step.staleness_max for step in done.steps] == [0] + [1] * 9
    assert done.learner_idle == pytest.approx(max(103 - learner_s, 0) / done.seconds)


def test_one_step_off_waits_for_the_longest_completion_and_a_stream_does_not():
    run = setting(learner_s=300.0, publish_s=0.0)
    alternate, one_step_off, stream = (simulate(run, schedule, steps=40) for schedule in SCHEDULES)
    assert stream.seconds < 0.8 * one_step_off.seconds
    assert one_step_off.seconds < 0.8 * alternate.seconds


@pytest.mark.parametrize("learner_s", [50.0, 2000.0])
def test_a_stream_approaches_the_busier_side(learner_s: float):
    """The other side is so much faster that it never has to be waited for."""
    run = setting(learner_s=learner_s, publish_s=0.0, reward_s=0.0, law=LinearLaw(0.0, 0.05))
    tokens = sum(sum(LONG_TAIL.of_group(draw, 4, 0)) for draw in range(800))
    sampling = 0.05 * tokens / 100 / 2  # two engines, each 0.05 s a token at any number of sequences
    steps = [simulate(replace(run, max_staleness=most), STREAM, steps=80).seconds for most in (1, 2, 4, 8)]
    assert steps[-1] == pytest.approx(max(sampling, learner_s), rel=0.05)
    assert steps[0] >= 0.98 * steps[-1]


def test_a_stream_that_waits_for_the_learner_is_as_stale_as_it_may_be():
    slow = simulate(setting(learner_s=5000.0), STREAM)
    assert slow.learner_idle == pytest.approx(0.0, abs=1e-6)
    assert slow.rollout_idle > 0.5
    assert slow.staleness_max == 2
    fast = simulate(setting(learner_s=1.0), STREAM, steps=40)
    assert fast.learner_idle > 0.5
    assert fast.staleness_mean < slow.staleness_mean


def test_each_publish_of_a_stream_reads_again_what_runs():
    run = setting(prompt=50.0)
    costly = replace(run, prefill_s=0.02)
    without_publish, with_publish = (
        [simulate(replace(one, learner_s=learner_s), STREAM, steps=30).seconds for one in (run, costly)]
        for learner_s in (2000.0, 100.0)
    )
    assert without_publish[1] == pytest.approx(without_publish[0], rel=0.01), "the learner takes longer anyway"
    assert with_publish[1] > with_publish[0] * 1.02


def test_dropped_groups_are_replaced_and_a_stream_fills_every_step():
    run = setting(rejection=0.5, max_rounds=1)
    assert {len(step.draws) for step in simulate(run, STREAM).steps} == {8}
    assert min(len(step.draws) for step in simulate(run, ALTERNATE).steps) < 8
    refilled = simulate(replace(run, max_rounds=10), ALTERNATE)
    assert {len(step.draws) for step in refilled.steps} == {8}
    assert refilled.seconds > simulate(run, ALTERNATE).seconds


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_completions_that_stand_for_others_change_little(schedule: str):
    run = setting(groups=32, samples=16, slots=128, lengths=Uniform(shortest=50, longest=150))
    exact, coarse = (simulate(replace(run, each=each), schedule) for each in (1, 4))
    assert coarse.seconds == pytest.approx(exact.seconds, rel=0.03)
    assert coarse.tokens_per_s == pytest.approx(exact.tokens_per_s, rel=0.03)
