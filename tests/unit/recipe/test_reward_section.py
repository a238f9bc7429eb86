"""Mode auto: the place where a reward runs if the recipe leaves it open, and its time limit."""

from __future__ import annotations

from typing import Any

import pytest

from rlkl.recipe import RewardSection


@pytest.mark.parametrize(
    ("section", "place", "deadline_s"),
    [
        ({"function": "own.py:f"}, "process", 60.0),
        ({"function": "package.module:f"}, "process", 60.0),
        ({"function": "own.py:f", "timeout_s": 5.0, "workers": 3, "memory_mb": 500}, "process", 5.0),
        ({"function": "task:arithmetic"}, "inline", None),
        ({"function": "task:arithmetic", "timeout_s": 5.0}, "process", 5.0),
        ({"function": "task:arithmetic", "workers": 2}, "process", 60.0),
        ({"function": "task:arithmetic", "memory_mb": 100}, "process", 60.0),
        ({"function": "__main__:f"}, "inline", None),
        ({"function": "own.py:f", "mode": "inline"}, "inline", None),
        ({"function": "own.py:f", "mode": "thread"}, "thread", None),
        ({"function": "own.py:f", "mode": "thread", "timeout_s": 5.0}, "thread", 5.0),
        ({"function": "own.py:f", "mode": "process"}, "process", 60.0),
        ({"function": "own.py:f", "mode": "actor"}, "actor", 60.0),
    ],
)
def test_where_a_reward_runs_and_its_deadline(section: dict[str, Any], place: str, deadline_s: float | None):
    found = RewardSection.model_validate(section)
    assert (found.place, found.deadline_s) == (place, deadline_s)
