"""A publish by group in real processes: a learner of two ranks, and two engines."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import run_processes
from tests.unit.weights.group_members import DEADLINE_S, ENGINES, NAMES, RANKS, damage, take_part

SOON_S = 12.0
"""Seconds on top of a deadline that an error may take to be noticed everywhere: less than a second deadline."""


def publish(folder: Path, fault: str) -> dict[str, Any]:
    run_processes(take_part, RANKS + ENGINES, folder, fault)
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_every_engine_gets_every_bit(tmp_path: Path):
    seen = publish(tmp_path, "none")

    sent = seen["rank 0"]["version 1"]
    assert list(sent) == NAMES
    assert seen["rank 1"]["version 1"] == {}
    for engine in ("engine 0", "engine 1"):
        for version in (1, 2):
            assert seen[engine][f"version {version}"] is None
            assert seen[engine][f"equal {version}"] == NAMES
            assert seen[engine][f"sums {version}"] == seen["rank 0"][f"version {version}"]
            assert seen[engine][f"unreached {version}"] == []


def test_a_flipped_bit_is_named(tmp_path: Path):
    seen = publish(tmp_path, "flips")

    assert damage(seen["rank 0"]["version 1"], seen["engine 1"]) == (f"{NAMES[1]} at engine 1",)
    assert damage(seen["rank 0"]["version 1"], seen["engine 0"]) == ()


def test_a_tensor_that_an_engine_skips_is_named(tmp_path: Path):
    seen = publish(tmp_path, "skips")

    assert seen["engine 1"]["unreached 1"] == [NAMES[4]]
    assert seen["engine 0"]["unreached 1"] == []


@pytest.mark.parametrize(
    ("fault", "learner", "engine_0", "engine_1"),
    [
        ("other shape", "engine 1 could not load bucket 1", "engine 1 could not load bucket 1", "40 x 31"),
        (
            "learner's shape",
            f"would send {NAMES[3]} (bfloat16, 30 x 40) where {NAMES[3]} (bfloat16, 40 x 30) was announced",
            "was told by the learner that it cannot send bucket 1",
            "was told by the learner that it cannot send bucket 1",
        ),
        (
            "learner skips",
            f"would send {NAMES[5]} (bfloat16, 9 x 3) where {NAMES[4]} (float32, 2 x 2) was announced",
            "was told by the learner that it cannot send bucket 2",
            "was told by the learner that it cannot send bucket 2",
        ),
        ("stalls", f"did not answer within {DEADLINE_S:g} s", f"did not answer within {DEADLINE_S:g} s", "engine 1"),
    ],
)
def test_a_failure_is_named_everywhere_and_the_next_group_works(
    fault: str, learner: str, engine_0: str, engine_1: str, tmp_path: Path
):
    seen = publish(tmp_path, fault)

    assert learner in seen["rank 0"]["version 1"]
    assert "the learner's rank 0 could not send bucket" in seen["rank 1"]["version 1"]
    assert engine_0 in seen["engine 0"]["version 1"]
    assert engine_1 in seen["engine 1"]["version 1"]
    for who in ("rank 0", "rank 1", "engine 0"):
        assert seen[who]["seconds 1"] < DEADLINE_S + SOON_S
    for engine in ("engine 0", "engine 1"):
        assert seen[engine]["equal 2"] == NAMES


def test_an_engine_that_dies_between_buckets(tmp_path: Path):
    seen = publish(tmp_path, "dies")

    assert seen.keys() == {"rank 0", "rank 1", "engine 0"}
    assert "the learner could not" in seen["rank 0"]["version 1"]
    assert "engine 1 was to" in seen["rank 0"]["version 1"]
    assert "engine 0 could not" in seen["engine 0"]["version 1"]
    assert "the learner's rank 0 could not send bucket" in seen["rank 1"]["version 1"]
    assert max(seen[who]["seconds 1"] for who in seen) < DEADLINE_S + SOON_S


def test_an_engine_that_never_joins(tmp_path: Path):
    seen = publish(tmp_path, "absent")

    for who in ("rank 0", "engine 0"):
        assert "missing: engine 1" in seen[who]["version 1"]
        assert DEADLINE_S / 2 < seen[who]["seconds 1"] < DEADLINE_S + SOON_S
