"""The alarms on runs like the paper's healthy and collapsing one."""

from __future__ import annotations

import pytest

from rlkl.updates.papo import loss_hacking

HEALTHY = {
    "perception/kl": 0.04,
    "perception/kl_variance": 1.5,
    "perception/entropy_clean": 0.35,
    "perception/entropy_corrupted": 0.45,
    "update/clip_fraction_high": 5e-4,
}


def loss_hacking_alarms(records: list[dict[str, float]], *, first_kl: float = 0.04) -> dict[str, str]:
    return loss_hacking.loss_hacking_alarms(records, first_kl=first_kl)


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
    ],
)
def test_each_value_has_its_limit(key: str, quiet: float, loud: float) -> None:
    assert loss_hacking_alarms([*history(50), {**HEALTHY, key: quiet}]) == {}
    alarms = loss_hacking_alarms([*history(50), {**HEALTHY, key: loud}])
    assert list(alarms) == [key]
    assert alarms[key].startswith(f"{key} = ")
    assert "update.perception_coef" in alarms[key]


@pytest.mark.parametrize(("first_kl", "quiet", "loud"), [(0.04, 0.3, 0.31), (0.5, 2.0, 2.1)])
def test_the_perception_kl_of_ten_steps_has_a_limit(first_kl: float, quiet: float, loud: float) -> None:
    """The paper's, or, where answers are a word that is seen in the picture, four times the run's own start."""
    before = history(20, perception__kl=first_kl)
    assert loss_hacking_alarms([*before, *history(10, perception__kl=quiet)], first_kl=first_kl) == {}
    assert loss_hacking_alarms(history(9, perception__kl=loud), first_kl=first_kl) == {}, "nine steps are too few"
    alarms = loss_hacking_alarms([*before, *history(10, perception__kl=loud)], first_kl=first_kl)
    assert list(alarms) == ["perception/kl"]
    assert f"perception/kl = {loud:.3g} nats per token over 10 steps exceeds {quiet:.3g}" in alarms["perception/kl"]
    assert "update.perception_coef" in alarms["perception/kl"]


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
    tiny = {"perception__entropy_clean": 0.03, "perception__entropy_corrupted": 1.2}
    doubled = {"perception__entropy_clean": 0.06, "perception__entropy_corrupted": 1.5}
    assert loss_hacking_alarms([*history(30, **tiny), *history(10, **doubled)]) == {}, "near zero a fifth is noise"
