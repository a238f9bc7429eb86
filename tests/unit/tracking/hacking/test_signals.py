from __future__ import annotations

import math

import pytest

from rlkl.tracking.hacking.signals import Record, read_signals

CALM = {
    "reward/mean": 0.0,
    "reward/gold": 0.5,
    "kl/policy_to_reference": 1.0,
    "similarity/meteor": 0.1,
    "rollout/empty_fraction": 0.01,
    "rollout/length_mean": 100.0,
    "rollout/repetition": 0.2,
    "watch/spread/reward": 2.0,
    "watch/spread/gold": 0.4,
}
GOLD = {"gold": "reward/gold"}


def steps(count: int, **changed: float) -> list[Record]:
    """``count`` equal records; keys are written with two underscores for the slash."""
    return [{**CALM, **{key.replace("__", "/"): value for key, value in changed.items()}}] * count


def level(records: list[Record], signal: str) -> float:
    return read_signals(records, GOLD)[signal].level


def test_a_run_that_stands_still_has_no_level_above_zero():
    readings = read_signals(steps(40), GOLD)
    assert set(readings) == {
        "similarity",
        "empty",
        "length",
        "repetition",
        "kl_acceleration",
        "gap/gold",
        "fall/gold",
    }
    assert {name: reading.level for name, reading in readings.items()} == dict.fromkeys(readings, 0.0)


def test_nothing_is_read_before_there_are_two_windows():
    assert read_signals(steps(9), GOLD) == {}
    assert "length" in read_signals(steps(10), GOLD)
    assert "kl_acceleration" not in read_signals(steps(24), GOLD)


@pytest.mark.parametrize(
    ("signal", "changed", "expected"),
    [
        ("similarity", {"similarity__meteor": 0.3}, 1.0),
        ("similarity", {"similarity__meteor": 0.2}, 0.5),
        ("similarity", {"similarity__meteor": 0.0}, -0.5),
        ("empty", {"rollout__empty_fraction": 0.06}, 1.0),
        ("length", {"rollout__length_mean": 130.0}, 1.0),
        ("length", {"rollout__length_mean": 100 / 1.3}, 1.0),
        ("length", {"rollout__length_mean": 169.0}, 2.0),
        ("repetition", {"rollout__repetition": 0.35}, 1.5),
        ("gap/gold", {"reward__mean": 2.0}, 1.0),
        ("gap/gold", {"reward__mean": 2.0, "reward__gold": 0.7}, 0.5),
        ("gap/gold", {"reward__mean": 0.0, "reward__gold": 0.3}, 0.5),
        ("fall/gold", {"reward__mean": 1.0, "reward__gold": 0.4}, 1.0),
        ("fall/gold", {"reward__mean": -1.0, "reward__gold": 0.4}, 0.0),
    ],
)
def test_levels_of_the_last_steps_against_the_first(signal: str, changed: dict[str, float], expected: float):
    assert level([*steps(20), *steps(5, **changed)], signal) == pytest.approx(expected)


def test_one_odd_step_weighs_a_fifth():
    assert level([*steps(20), *steps(1, rollout__repetition=0.7)], "repetition") == pytest.approx(1.0)


def test_a_finding_names_what_drifted_and_by_how_much():
    records = [*steps(20), *steps(5, rollout__length_mean=150.0, similarity__meteor=0.4, reward__mean=3.0)]
    readings = read_signals(records, GOLD)
    assert readings["length"].finding == "completions have 150.0 tokens, 1.50 times those of the start (100.0)"
    assert "METEOR 0.40, at the start 0.10; 1.0% are empty and they have 150.0 tokens" in readings["similarity"].finding
    assert "it has gained 1.50 standard deviations since the start, reward/gold 0.00" in readings["gap/gold"].finding


def test_silence_looks_diverse_and_trips_another_signal():
    readings = read_signals(
        [*steps(20), *steps(5, similarity__meteor=0.0, rollout__empty_fraction=0.9, rollout__length_mean=1.9)], GOLD
    )
    assert readings["similarity"].level < 0
    assert readings["empty"].level > 10
    assert readings["length"].level > 10
    assert "90.0% are empty" in readings["similarity"].finding


def test_a_monitor_is_compared_with_its_best_and_not_with_its_start():
    rising = [*steps(10), *steps(10, reward__gold=0.8, reward__mean=1.0)]
    fallen = [*rising, *steps(5, reward__gold=0.7, reward__mean=2.0)]
    assert level(fallen, "fall/gold") == pytest.approx(1.0)
    assert level(rising, "fall/gold") == 0.0
    finding = read_signals(fallen, GOLD)["fall/gold"].finding
    assert finding == "reward/gold has fallen from 0.8 to 0.7 in 5 steps, while the reward rose"


def grown(count: int, kl: float) -> list[Record]:
    return [*steps(1, kl__policy_to_reference=kl)] * count


def test_steady_and_even_quadratic_growth_is_no_acceleration():
    steady = [record for step in range(200) for record in grown(1, 0.1 * step)]
    quadratic = [record for step in range(200) for record in grown(1, 0.01 * step * step)]
    for records in (steady, quadratic):
        assert all(level(records[:end], "kl_acceleration") < 1 for end in range(25, 201))


def test_a_kl_that_doubles_in_five_steps_accelerates():
    records = [record for step in range(25) for record in grown(1, 0.1 * step)]
    assert level(records, "kl_acceleration") == 0.0  # growing as ever, and by less than a quarter of it
    explosion = [*records, *(record for step in range(5) for record in grown(1, 2.5 * 2 ** (step / 2)))]
    means = [sum(r["kl/policy_to_reference"] for r in explosion[end - 5 : end]) / 5 for end in (25, 30)]
    assert level(explosion, "kl_acceleration") == pytest.approx((means[1] - means[0]) / 0.5 / 2)
    assert level(explosion, "kl_acceleration") > 1
    assert f"{means[1] - means[0]:+.2f} within 5 steps" in read_signals(explosion, GOLD)["kl_acceleration"].finding


def test_tiny_kls_that_jitter_are_left_alone():
    jitter = [record for step in range(60) for record in grown(1, 0.01 * (step % 7))]
    assert level(jitter, "kl_acceleration") == 0.0


def test_a_run_without_a_metric_has_no_such_signal():
    bare = [{"reward/mean": 0.0, "rollout/length_mean": 10.0}] * 40
    assert set(read_signals(bare, GOLD)) == {"length"}


def test_a_monitor_without_spread_at_the_start_has_no_unit():
    assert "gap/gold" not in read_signals(steps(20, watch__spread__gold=0.0), GOLD)
    assert "fall/gold" not in read_signals(steps(20, watch__spread__gold=0.0), GOLD)


def test_a_monitor_that_abstained_for_a_while_is_read_where_it_can_be():
    without = [{key: value for key, value in CALM.items() if key != "reward/gold"}] * 3
    records = [*steps(10, reward__gold=0.9), *without, *steps(10, reward__mean=1.0)]
    assert level(records, "fall/gold") == pytest.approx(4.0)
    assert math.isclose(level(records, "gap/gold"), 0.5 + 1.0)
