"""The benchmark of the schedules: its recipe, and the row that compares a run with its prediction."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from benchmarks.schedules import HEADING, line, recipe_of, write_inputs
from rlkl.costs.engines import LinearLaw
from rlkl.costs.lengths import Uniform
from rlkl.costs.setting import SCHEDULES, STREAM, Setting
from rlkl.costs.simulation import simulate

OPTIONS = argparse.Namespace(steps=5, learner_s=1.5, staleness=3, overrides=["rollout.workers=1"])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_all_schedules_have_one_recipe(tmp_path: Path, schedule: str):
    write_inputs(tmp_path)
    recipe = recipe_of(tmp_path, schedule, OPTIONS)
    assert (recipe.rollout.schedule, recipe.rollout.max_staleness, recipe.rollout.workers) == (schedule, 3, 1)
    assert recipe.run.dir == str(tmp_path / schedule)
    assert (recipe.steps, recipe.tracking.samples_every) == (5, 1)
    assert (tmp_path / "model" / "config.json").is_file()


def test_a_row_compares_the_steps_between_warm_up_and_end():
    five = Uniform(shortest=5, longest=5)
    setting = Setting(groups=4, samples=2, lengths=five, engines=1, slots=8, law=LinearLaw(1.0), learner_s=20.0)
    predicted = simulate(setting, STREAM, steps=4)
    steady = {"time/step_s": 25.0, "time/learner_waited_s": 5.0, "time/rollout_idle_s": 2.0}
    steady |= {"rollout/staleness_mean": 1.5, "rollout/staleness_max": 2.0}
    odd = dict.fromkeys(steady, 1000.0)
    warm_up, end = predicted.warm_up, predicted.staleness_max
    row = line(STREAM, [odd] * warm_up + [steady] * 3 + [odd] * end, predicted)
    assert len(row) <= len(HEADING)
    assert f"25.00 / {predicted.seconds:.2f} s" in row
    assert f"{predicted.seconds / 25 - 1:+.1%}" in row
    assert "1.50 / " in row
