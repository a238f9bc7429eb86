"""The alarms on runs like the paper's healthy and collapsing one."""

from __future__ import annotations

import pytest

from rlkl.updates.loss_hacking import loss_hacking_alarms

HEALTHY = {
    "perception/kl": 0.04,
    "perception/kl_variance": 1.5,
    "perception/entropy_clean": 0.35,
    "perception/entropy_corrupted": 0.45,
    "update/clip_fraction_high": 5e-4,
}


def history(steps: int, **changed: float) -> list[dict[str, float]]:
    return [{**HEALTHY, **{key.replace("__", "/"): value for key, value in changed.items()}}] * steps


def test_a_healthy_run_raises_no_alarm() -> None:
    assert loss_hacking_alarms(history(120)) == {}
    assert loss_hacking_alarms(history(1)) == {}


@pytest.mark.parametrize(
    ("key", "quiet", "loud"),
    [
        ("update/clip_fraction_high", 1.5e-3, 1.6e-3),
        ("perception/kl_variance", 4.5, 4.6),
        ("perception/kl", 0.3, 0.31),
    ],
)
def test_each_value_has_its_limit(key: str, quiet: float, loud: float) -> None:
    assert loss_hacking_alarms([*history(50), {**HEALTHY, key: quiet}]) == {}
    alarms = loss_hacking_alarms([*history(50), {**HEALTHY, key: loud}])
    assert list(alarms) == [key]
    assert alarms[key].startswith(f"{key} = ")
    assert "update.perception_coef" in alarms[key]


def test_jumps_need_a_history_with_values() -> None:
    leap = {**HEALTHY, "update/clip_fraction_high": 0.1}
    assert loss_hacking_alarms([*history(9), leap]) == {}
    assert list(loss_hacking_alarms([*history(10), leap])) == ["update/clip_fraction_high"]
    # Nothing is clipped while there is one optimizer step per batch; a first clipped token is no jump.
    assert loss_hacking_alarms([*history(50, update__clip_fraction_high=0.0), leap]) == {}


def test_only_the_recent_past_counts() -> None:
    once_high = history(200, update__clip_fraction_high=0.1)
    leap = {**HEALTHY, "update/clip_fraction_high": 0.01}
    assert list(loss_hacking_alarms([*once_high, *history(100), leap])) == ["update/clip_fraction_high"]
    assert loss_hacking_alarms([*once_high, *history(40), leap]) == {}


def test_both_entropies_must_rise() -> None:
    risen = {"perception__entropy_clean": 0.45, "perception__entropy_corrupted": 0.6}
    assert list(loss_hacking_alarms([*history(30), *history(10, **risen)])) == ["perception/entropy"]
    for key, value in risen.items():
        assert loss_hacking_alarms([*history(30), *history(10, **{key: value})]) == {}
    assert loss_hacking_alarms([*history(9), *history(10, **risen)]) == {}
