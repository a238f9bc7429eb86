"""The simulated schedules of a plan: what is shown, which is named as the fastest, and how long it takes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlkl.commands.plan_cluster import ClusterPlan
from rlkl.commands.plan_cluster_view import lines
from rlkl.commands.plan_schedules import Forecast, table
from rlkl.costs.engines import LinearLaw
from rlkl.costs.lengths import Uniform
from rlkl.costs.setting import ALTERNATE, ONE_STEP_OFF, SCHEDULES, STREAM, Setting, Simulated
from rlkl.costs.simulation import simulate
from tests.unit.commands.test_plan_cluster import plan

SPLIT: dict[str, Any] = {"learner": {"ranks": 4}, "rollout": {"workers": 4, "max_new_tokens": 8192}}


def shown(planned: ClusterPlan) -> str:
    return " ".join(" ".join(lines(planned)).split())


def simulated(planned: ClusterPlan, schedule: str) -> Simulated:
    return next(one for one in planned.forecasts[0].schedules if one.schedule == schedule)


def test_a_plan_simulates_every_schedule_of_both_layouts():
    planned = plan(learner={"ranks": 3}, rollout={"workers": 5, "max_new_tokens": 8192})
    assert [[one.schedule for one in layout.schedules] for layout in planned.forecasts] == [[*SCHEDULES]] * 2
    seconds = {schedule: simulated(planned, schedule).seconds for schedule in SCHEDULES}
    assert seconds[STREAM] <= 1.01 * seconds[ONE_STEP_OFF]
    assert seconds[ONE_STEP_OFF] < seconds[ALTERNATE]
    learner, publish = planned.today.seconds.learner, planned.today.seconds.publish
    assert simulated(planned, ALTERNATE).steps[0].learner_s == learner
    assert seconds[ONE_STEP_OFF] >= learner + publish


def test_the_sampling_of_both_tables_is_the_simulated_one():
    planned = plan(**SPLIT)
    one = simulated(planned, ALTERNATE).steps[0]
    assert one.seconds == pytest.approx(
        planned.today.seconds.rollout + planned.today.seconds.learner + planned.today.seconds.publish
    )


def test_the_recipes_schedule_and_staleness_are_marked():
    planned = plan(learner=SPLIT["learner"], rollout={**SPLIT["rollout"], "schedule": "stream", "max_staleness": 4})
    marked = [line for line in lines(planned) if line.startswith("  * stream, max_staleness 4")]
    assert len(marked) == 1
    assert simulated(planned, STREAM).staleness_max <= 4


def test_learner_and_engines_on_one_gpu_have_one_schedule():
    planned = plan(1, "B200", rollout={"workers": 1}, model={"path": "Qwen/Qwen3-0.6B"})
    assert [[one.schedule for one in layout.schedules] for layout in planned.forecasts] == [[ALTERNATE]]
    assert "alternate, is the fastest; no token is sampled by older weights" in shown(planned)


def test_nothing_is_simulated_without_sampling():
    pairs = plan(
        data={"chosen_column": "a", "rejected_column": "b"},
        rollout={"workers": 0},
        rewards=[],
        update={"rule": "sparsepo"},
        model={"lora": {}},
    )
    assert pairs.forecasts == ()
    assert "Schedules, simulated" not in shown(pairs)


def test_long_completions_make_a_stream_worth_more():
    """With few completions for each engine, a batch waits for the longest one."""
    few = {"workers": 4, "prompts_per_step": 32, "samples_per_prompt": 8, "max_new_tokens": 16_384}
    planned = plan(learner={"ranks": 4}, rollout=few)
    assert simulated(planned, STREAM).seconds < 0.9 * simulated(planned, ONE_STEP_OFF).seconds
    assert "rollout.schedule=stream" in shown(planned)


SETTING = Setting(
    groups=8,
    samples=2,
    lengths=Uniform(shortest=10, longest=90),
    engines=1,
    slots=16,
    law=LinearLaw(1.0),
    learner_s=50.0,
)


def forecast(keys: str = "", fits: bool = True, **changes: Any) -> Forecast:
    setting = replace(SETTING, **changes)
    return Forecast(
        keys=keys, fits=fits, schedules=tuple(simulate(setting, schedule, steps=30) for schedule in SCHEDULES)
    )


def sentence(*forecasts: Forecast, own: str = ALTERNATE) -> str:
    text = " ".join(table(forecasts, own, 2))
    return " ".join(text.partition("rollout.schedule of the recipe")[2].split())


def test_the_fastest_schedule_is_named_with_the_age_of_its_tokens():
    found = forecast()
    stream = found.schedules[2]
    told = sentence(found)
    assert told.startswith(f"Fastest: rollout.schedule=stream, {stream.seconds:.0f} s a step, ")
    assert f"{found.schedules[0].seconds / stream.seconds:.1f} times as fast" in told
    assert f"{stream.staleness_mean:.1f} versions old on average and {stream.staleness_max} at most." in told


def test_of_equally_fast_schedules_the_one_with_the_youngest_tokens_is_named():
    assert "rollout.schedule=one_step_off" in sentence(forecast(learner_s=5000.0))
    assert "each token is sampled by weights that are one version old" in sentence(forecast(learner_s=5000.0))


def test_the_recipes_own_schedule_may_be_the_fastest():
    assert sentence(forecast(), own=STREAM).startswith("The recipe's own schedule, stream, is the fastest; ")


def test_a_layout_that_does_not_fit_is_not_proposed():
    slow, fast = forecast(learner_s=5000.0), forecast("learner.ranks=9", fits=False)
    assert "learner.ranks=9" not in sentence(slow, fast)
    assert "learner.ranks=9" in sentence(slow, replace(fast, fits=True))
    assert sentence(replace(slow, fits=False)) == "None of these fits, so none is the fastest."


def test_a_plan_loads_no_torch():
    code = (
        "import sys; from rlkl.cli import main; main(['plan', 'math_dapo_7b', '--gpus', '8']); "
        "assert not {'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules)"
    )
    root = Path(__file__).parents[3]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
