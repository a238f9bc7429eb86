"""Error policies, normalisation and the sum, on whole rounds."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest
from pydantic import ValidationError

from rlkl.errors import RewardInputError
from rlkl.recipe import RewardSection
from rlkl.rewards import load_rewards
from rlkl.rewards.scoring.aggregate import STD_EPSILON
from tests.unit.rewards.score_texts import loaded, score, values

REWARDS = """
import rlkl

def number(completion):
    return None if completion == "-" else float(completion)

def tenfold(completion):
    return 10 * float(completion) if completion != "-" else None

def digit(completion_ids):
    return rlkl.Reward(0.0, token_values=[float(chr(token)) for token in completion_ids[:-1]] + [0.0])
"""
GROUPS = (["1", "2", "3"], ["4", "?", "9"], ["?", "?", "?"])
POLICY = {"max_failed_fraction": 1.0}


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "own.py"
    path.write_text(REWARDS)
    return str(path)


def section(file: str, name: str = "number", **more: Any) -> dict[str, Any]:
    return {"function": f"{file}:{name}"} | POLICY | more


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({"on_error": "drop_sample"}, [1.0, 2.0, 3.0, 4.0, None, 9.0, None, None, None]),
        ({"on_error": "drop_group"}, [1.0, 2.0, 3.0, None, None, None, None, None, None]),
        ({"on_error": "group_mean"}, [1.0, 2.0, 3.0, 4.0, 6.5, 9.0, None, None, None]),
        ({"on_error": "constant", "error_value": -1.0}, [1.0, 2.0, 3.0, 4.0, -1.0, 9.0, -1.0, -1.0, -1.0]),
    ],
)
def test_policies(file: str, policy: dict[str, Any], expected: list[float | None]):
    with loaded(section(file, **policy)) as rewards:
        done = score(rewards, *GROUPS)
    assert values(done) == expected
    assert [index for index, scored in enumerate(done.scored) if scored.failed] == [4, 6, 7, 8]
    assert [scored.components.get("number") for scored in done.scored] == [
        1.0,
        2.0,
        3.0,
        4.0,
        None,
        9.0,
        None,
        None,
        None,
    ]


def test_a_sample_that_one_reward_drops_is_dropped_though_another_scored_it(file: str, tmp_path: Path):
    (tmp_path / "length.py").write_text("def length(completion):\n    return len(completion)\n")
    with loaded(section(file, on_error="drop_sample"), {"function": f"{tmp_path}/length.py:length"}) as rewards:
        done = score(rewards, ["1", "?"])
    assert values(done) == [2.0, None]
    assert done.scored[1].components == {"length": 1.0}


HOSTILE = """
import rlkl

class Hostile:
    def __float__(self):
        raise LookupError("no number today")

def tagged(completion):
    return rlkl.Reward(1.0, tags=None if completion == "?" else ("fine",))

def hostile(completion):
    return Hostile() if completion == "?" else 1.0

def hostiles(completions):
    return [Hostile() if text == "?" else 1.0 for text in completions]
"""


@pytest.mark.parametrize("mode", ["inline", "thread", "process"])
@pytest.mark.parametrize("name", ["tagged", "hostile", "hostiles"])
def test_what_a_returned_value_raises_is_the_failure_of_its_sample(tmp_path: Path, name: str, mode: str):
    (tmp_path / "hostile.py").write_text(HOSTILE)
    with loaded(section(str(tmp_path / "hostile.py"), name, mode=mode, on_error="drop_sample")) as rewards:
        done = score(rewards, ["1", "?", "3"])
    assert values(done) == [1.0, None, 1.0]
    assert [scored.failed for scored in done.scored] == [(), (name,), ()]


def normalised(numbers: list[float]) -> list[float]:
    return [(x - fmean(numbers)) / (pstdev(numbers) + STD_EPSILON) for x in numbers]


def test_normalisation_over_groups_and_over_the_batch(file: str):
    groups = (["1", "3"], ["10", "30"])
    with loaded(section(file, normalize="group")) as rewards:
        done = score(rewards, *groups)
    assert values(done) == pytest.approx([*normalised([1, 3]), *normalised([10, 30])])
    assert [scored.raw_reward for scored in done.scored] == [1.0, 3.0, 10.0, 30.0]
    with loaded(section(file, normalize="batch")) as rewards:
        assert values(score(rewards, *groups)) == pytest.approx(normalised([1, 3, 10, 30]))


def test_each_reward_is_normalised_by_itself_and_then_weighted(file: str):
    with loaded(section(file, normalize="batch", weight=3.0), section(file, "tenfold", normalize="batch")) as rewards:
        done = score(rewards, ["1", "2"], ["4", "8"])
    own, tenfold = normalised([1, 2, 4, 8]), normalised([10, 20, 40, 80])
    assert values(done) == pytest.approx([3 * a + b for a, b in zip(own, tenfold, strict=True)])
    assert [scored.raw_reward for scored in done.scored] == [13.0, 26.0, 52.0, 104.0]


def test_the_sum_may_be_normalised_too(file: str):
    for over, expected in (
        ("group", [*normalised([13, 26]), *normalised([52, 104])]),
        ("batch", normalised([13, 26, 52, 104])),
    ):
        with loaded(section(file, weight=3.0), section(file, "tenfold"), normalize=over) as rewards:
            assert values(score(rewards, ["1", "2"], ["4", "8"])) == pytest.approx(expected)


def test_statistics_leave_out_who_failed_abstained_or_was_dropped(file: str):
    with loaded(section(file, normalize="group", on_error="drop_sample")) as rewards:
        done = score(rewards, ["1", "?", "3", "-"], ["5", "5", "5", "?"])
    assert values(done) == pytest.approx([*normalised([1, 3])[:1], None, *normalised([1, 3])[1:], None, 0, 0, 0, None])


def test_token_values_are_scaled_with_their_reward(file: str):
    with loaded(section(file, "digit", normalize="batch", weight=2.0)) as rewards:
        done = score(rewards, ["12", "34"])
    scale = 2.0 / (2.0 + STD_EPSILON)  # the scores are 3 and 7
    assert values(done) == pytest.approx([-2 * scale, 2 * scale])
    assert done.scored[1].token_rewards == pytest.approx((3 * scale, 4 * scale, 0.0))


def test_a_monitor_is_no_part_of_the_sum_and_drops_nothing(file: str, tmp_path: Path):
    (tmp_path / "length.py").write_text("def length(completion):\n    return {'characters': len(completion)}\n")
    watched = section(file, role="monitor", on_error="drop_group")
    with loaded({"function": f"{tmp_path}/length.py:length"}, watched) as rewards:
        done = score(rewards, ["1", "??"])
    assert values(done) == [1.0, 2.0]
    assert [scored.monitors for scored in done.scored] == [{"number": 1.0}, {}]
    assert done.scored[1].components == {"length": 2.0, "length/characters": 2.0}
    assert done.scored[1].failed == ("number",)


def test_monitors_alone_are_nothing_to_learn_from(file: str):
    with pytest.raises(RewardInputError, match="only monitors: nothing to learn from"):
        load_rewards([RewardSection.model_validate(section(file, role="monitor"))])


def test_a_rule_that_needs_no_reward_sees_a_reward_of_zero_beside_the_monitors(file: str):
    with loaded(section(file, role="monitor", on_error="drop_group"), optional=True) as rewards:
        done = score(rewards, ["1", "??"])
        assert not rewards.trains
    assert values(done) == [0.0, 0.0]
    assert [scored.monitors for scored in done.scored] == [{"number": 1.0}, {}]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"mode": "inline", "timeout_s": 3.0}, r"timeout_s = 3.0 does nothing in mode inline; it is for thread, proc"),
        ({"mode": "thread", "memory_mb": 100}, r"memory_mb = 100 does nothing in mode thread; it is for process"),
        ({"mode": "process", "gpus": 1.0}, r"gpus = 1.0 does nothing in mode process; it is for actor"),
        ({"mode": "inline", "workers": 4}, r"workers = 4 does nothing in mode inline"),
        ({"cpus": 2.0}, r"cpus = 2.0 does nothing in mode auto; it is for actor"),
        ({"on_error": "constant"}, r"error_value = None: give error_value with on_error: constant, and only there"),
        ({"error_value": 0.0}, r"on_error = raise, error_value = 0.0"),
        ({"role": "monitor", "normalize": "group"}, r"normalize = group does nothing for a monitor"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(file: str, more: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        RewardSection.model_validate(section(file, **more))
