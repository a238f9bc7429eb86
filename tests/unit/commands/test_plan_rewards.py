from __future__ import annotations

import rlkl
from rlkl.commands.plan import make_plan
from rlkl.system.machine import Machine


def test_the_plan_tells_where_rewards_run_and_for_how_long():
    sections = [
        "{function: task:arithmetic}",
        "{function: my_reward.py:sleeps, name: slow, workers: 2}",
        "{function: my_reward.py:sleeps, name: limited, mode: thread, timeout_s: 7}",
    ]
    recipe = rlkl.load_recipe("quickstart", f"rewards=[{', '.join(sections)}]")
    plan = make_plan(recipe, Machine(cpus=4, memory_gib=16.0))
    lines = [(one.role, one.count, one.does) for one in plan.processes if one.role.startswith("reward")]
    assert lines == [
        ("reward inline", 1, "task:arithmetic, no time limit"),
        ("reward process", 2, "slow, at most 60 s a call"),
        ("reward thread", 1, "limited, at most 7 s a call"),
    ]
