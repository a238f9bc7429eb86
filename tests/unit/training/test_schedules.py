"""Schedules: which version samples which batch, what a resume goes on with, and how old tokens become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from rlkl.errors import RewardError, RolloutError
from rlkl.rollout.engine import Request
from rlkl.tracking.records.reading import read_metrics
from rlkl.training.loop import Trainer
from rlkl.types import Completion
from tests.scheduled import Delays, build, draws_by_step, hands_of, killed_and_resumed, versions_by_step

SLOW_SAMPLING = Delays(step=0.01)
SLOW_LEARNING = Delays(learn=0.05)


def trained(run: Trainer) -> dict[int, list[tuple[int, Completion]]]:
    return {
        step: [(example.rollout.draw, example.rollout.completion) for example in examples]
        for step, examples in hands_of(run).trained.items()
    }


@pytest.mark.parametrize("delays", [SLOW_SAMPLING, SLOW_LEARNING, Delays(seed=3, step=0.003, learn=0.02, reward=0.002)])
def test_one_step_off_samples_a_batch_with_the_version_before_the_newest(delays: Delays, tmp_path: Path):
    run = build(tmp_path, delays, rollout={"schedule": "one_step_off"})
    run.run()

    assert versions_by_step(run) == {0: {0}, 1: {0}, 2: {1}, 3: {2}, 4: {3}, 5: {4}}
    assert draws_by_step(run) == {step: list(range(4 * step, 4 * step + 4)) for step in range(6)}
    assert [engine.loads_while_sampling for engine in hands_of(run).engines] == [0, 0]
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["rollout/staleness_max"] for line in lines] == [0, 1, 1, 1, 1, 1]
    assert [line["rollout/staleness_mean"] for line in lines] == [0, 1, 1, 1, 1, 1]


def test_alternate_samples_every_batch_with_the_newest_version(tmp_path: Path):
    run = build(tmp_path, SLOW_LEARNING)
    run.run()

    assert versions_by_step(run) == {step: {step} for step in range(6)}
    assert {line["rollout/staleness_max"] for line in read_metrics(tmp_path / "metrics.jsonl")} == {0}


@pytest.mark.parametrize("schedule", ["alternate", "one_step_off"])
@pytest.mark.parametrize("killed_in", [1, 2, 3, 5])
def test_a_killed_run_goes_on_with_the_same_completions(schedule: str, killed_in: int, tmp_path: Path):
    whole = build(tmp_path / "whole", SLOW_LEARNING, rollout={"schedule": schedule})
    whole.run()
    sections = {"rollout": {"schedule": schedule}}
    first, second = killed_and_resumed(tmp_path / "cut", after=killed_in, delays=SLOW_SAMPLING, **sections)

    assert trained(first) | trained(second) == trained(whole)
    assert min(trained(second)) == killed_in


def test_one_step_off_refills_steps_and_goes_on_with_them(tmp_path: Path):
    sections = {"rollout": {"schedule": "one_step_off", "max_rounds": 4}, "update": {"variant": "dapo"}}
    whole = build(tmp_path / "whole", Delays(), **sections)
    whole.run()
    first, second = killed_and_resumed(tmp_path / "cut", after=3, **sections)

    assert max(line["rollout/rounds"] for line in read_metrics(tmp_path / "whole" / "metrics.jsonl")) > 1
    assert trained(first) | trained(second) == trained(whole)
    kept = [
        [(line["data/epoch"], line["rollout/rounds"]) for line in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "cut")
    ]
    assert kept[0] == kept[1]


def test_an_error_in_sampling_ahead_keeps_the_step_that_was_trained(tmp_path: Path):
    run = build(tmp_path, Delays(), rollout={"schedule": "one_step_off"})
    sampler = hands_of(run).sampler
    submit, asked = sampler.submit, []

    def fails_for_the_third_batch(requests: Sequence[Request]) -> None:
        asked.append(requests)
        if len(asked) == 3:
            raise RolloutError("the rollout worker ended")
        submit(requests)

    sampler.submit = fails_for_the_third_batch
    with pytest.raises(RolloutError, match="ended"):
        run.run()

    second = build(tmp_path, Delays(), resume=tmp_path, rollout={"schedule": "one_step_off"})
    assert second.step == 2
    second.run()
    assert draws_by_step(run) | draws_by_step(second) == {n: list(range(4 * n, 4 * n + 4)) for n in range(6)}


@pytest.mark.parametrize("staleness", [1, 2, 4])
@pytest.mark.parametrize(
    "delays",
    [
        Delays(seed=1, learn=0.04),
        Delays(seed=2, step=0.01, longest=12),
        Delays(seed=3, step=0.003, learn=0.02, reward=0.01),
        Delays(seed=4, step=0.002, learn=0.1, longest=20),
    ],
)
def test_stream_keeps_its_bound_and_its_order_for_any_timing(staleness: int, delays: Delays, tmp_path: Path):
    run = build(tmp_path, delays, steps=12, rollout={"schedule": "stream", "max_staleness": staleness})
    run.run()

    assert draws_by_step(run) == {step: list(range(4 * step, 4 * step + 4)) for step in range(12)}
    for step, versions in versions_by_step(run).items():
        assert step - staleness <= min(versions)
        assert max(versions) <= step
    worst = max(line["rollout/staleness_max"] for line in read_metrics(tmp_path / "metrics.jsonl"))
    assert worst <= staleness
    if delays.seed == 1:  # sampling takes no time: the engines are as far ahead as they may be
        assert worst == staleness


@pytest.mark.parametrize("seed", range(4))
def test_stream_with_a_rule_that_rejects_groups(seed: int, tmp_path: Path):
    delays = Delays(seed=seed, step=0.002, learn=0.02, longest=3)
    run = build(tmp_path, delays, steps=10, rollout={"schedule": "stream"}, update={"variant": "dapo"})
    run.run()

    draws = [draw for step in sorted(draws_by_step(run)) for draw in draws_by_step(run)[step]]
    assert [len(of_step) for of_step in draws_by_step(run).values()] == [4] * 10
    assert draws == sorted(set(draws))
    assert len(draws) < draws[-1] + 1, "some were rejected"
    assert max(line["rollout/staleness_max"] for line in read_metrics(tmp_path / "metrics.jsonl")) <= 2


@pytest.mark.parametrize("killed_in", [1, 3, 4, 7])
def test_stream_trains_every_draw_once_across_kills(killed_in: int, tmp_path: Path):
    rollout = {"schedule": "stream", "max_staleness": 2}
    delays = Delays(seed=killed_in, step=0.002, learn=0.02)
    first = build(tmp_path, delays, steps=10, rollout=rollout)
    hands_of(first).stop_after = killed_in
    with pytest.raises(RuntimeError, match="killed"):
        first.run()
    second = build(tmp_path, delays, resume=tmp_path, steps=10, rollout=rollout)
    hands_of(second).stop_after = min(killed_in + 2, 9)
    with pytest.raises(RuntimeError, match="killed"):
        second.run()
    third = build(tmp_path, delays, resume=tmp_path, steps=10, rollout=rollout)
    third.run()

    found = draws_by_step(first) | draws_by_step(second) | draws_by_step(third)
    assert found == {step: list(range(4 * step, 4 * step + 4)) for step in range(10)}
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert max(line["rollout/staleness_max"] for line in lines) <= 2


def test_stream_samples_nothing_beyond_the_last_step(tmp_path: Path):
    run = build(tmp_path, Delays(learn=0.01), steps=5, rollout={"schedule": "stream", "max_staleness": 4})
    run.run()
    assert run.schedule.pending().groups == ()
    assert run.schedule.pending().position == 20


def test_weights_arrive_while_completions_are_sampled(tmp_path: Path):
    delays = Delays(seed=1, step=0.004, longest=30)
    run = build(tmp_path, delays, steps=10, rollout={"schedule": "stream", "max_staleness": 2})
    run.run()

    completions = [e.rollout.completion for examples in hands_of(run).trained.values() for e in examples]
    changed = [completion for completion in completions if completion.versions]
    assert changed
    for completion in changed:
        assert completion.weights_version == completion.versions[0][0]
        starts = [start for _, start in completion.versions]
        assert starts == sorted(set(starts))
        assert starts[-1] < len(completion.token_ids)


def test_an_engine_that_fails_stops_a_streaming_run(tmp_path: Path):
    run = build(tmp_path, Delays(), rollout={"schedule": "stream"})
    engine = hands_of(run).engines[1]
    step = engine.step

    def fails() -> list[tuple[int, Completion]]:
        if engine.steps > 8:
            raise RolloutError("out of memory")
        return step()

    engine.step = fails
    with pytest.raises(RolloutError, match="out of memory"):
        run.run()


def test_a_reward_that_fails_stops_a_streaming_run(tmp_path: Path):
    run = build(tmp_path, Delays(), rollout={"schedule": "stream"})
    (reward,) = run.rewards.rewards

    def broken(*_: object) -> float:
        raise ValueError("no judge")

    reward.function._function = broken
    with pytest.raises(RewardError):
        run.run()


@pytest.mark.parametrize(("fraction", "stops"), [(0.9, False), (0.3, True)])
def test_failed_scores_are_tolerated_as_a_fraction_of_a_step(fraction: float, stops: bool, tmp_path: Path):
    run = build(tmp_path, Delays(), rollout={"schedule": "stream"})
    (reward,) = run.rewards.rewards
    section = reward.section.model_copy(update={"on_error": "drop_group", "max_failed_fraction": fraction})
    run.rewards.rewards = (replace(reward, section=section),)

    def fails_on_a_third(completion: str) -> float:
        if sum(map(ord, completion)) % 3 == 0:
            raise ValueError("no judge")
        return 1.0

    run.rewards.rewards[0].function._function = fails_on_a_third
    if not stops:
        run.run()
        return
    with pytest.raises(RewardError, match=r"max_failed_fraction = 0\.3"):
        run.run()


def test_a_rule_that_rejects_everything_stops_a_streaming_run(tmp_path: Path):
    sections = {"rollout": {"schedule": "stream", "samples_per_prompt": 1}, "update": {"variant": "dapo"}}
    run = build(tmp_path, Delays(), **sections)
    with pytest.raises(RolloutError, match="trains on 0 of 200 groups"):
        run.run()


def test_the_learner_waits_for_the_slower_side(tmp_path: Path):
    slow = {"sampling": Delays(step=0.05), "learning": Delays(learn=0.5)}  # beside what a busy machine adds
    for name, delays, waits in (("sampling", slow["sampling"], True), ("learning", slow["learning"], False)):
        run = build(tmp_path / name, delays, rollout={"schedule": "one_step_off"}, steps=5)
        run.run()
        later = read_metrics(tmp_path / name / "metrics.jsonl")[1:]
        waited = sum(line["time/learner_waited_s"] for line in later)
        learned = sum(line["time/learner_s"] for line in later)
        assert (waited > learned) == waits
