"""Schedules simulated from the folder of a run: a run whose parts are known is written and read again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlkl.cli import main
from rlkl.commands.plan_measured import Measured, lines, read_run
from rlkl.costs.engines import LinearLaw
from rlkl.costs.lengths import Lognormal
from rlkl.costs.setting import ALTERNATE, SCHEDULES, Setting
from rlkl.costs.simulation import simulate
from rlkl.errors import InputError
from rlkl.recipe import Recipe
from rlkl.tracking.records.reading import MetricsFile, sample_path, write_samples
from rlkl.types import Completion, Prompt, Rollout, RolloutGroup

STEPS = 12
TRUE = Setting(
    groups=6,
    samples=4,
    lengths=Lognormal(mean=60, longest=200),
    engines=2,
    slots=4,
    law=LinearLaw(0.02, 0.003),
    learner_s=3.0,
    learner_token_s=0.002,
    publish_s=0.5,
    reward_s=0.25,
)
OTHER_S = 0.1


def values(**rollout: Any) -> dict[str, Any]:
    own = {"workers": 2, "prompts_per_step": 6, "samples_per_prompt": 4, "max_new_tokens": 200}
    return {
        "model": {"path": "task:arithmetic"},
        "data": {"source": "task:arithmetic", "max_prompt_tokens": 16},
        "rewards": [{"function": "task:arithmetic"}],
        "rollout": {**own, "vllm": {"max_num_seqs": 4}, **rollout},
    }


def groups_of(step: int) -> list[RolloutGroup]:
    return [_group(draw) for draw in range(step * TRUE.groups, (step + 1) * TRUE.groups)]


def _group(draw: int) -> RolloutGroup:
    rollouts = [
        Rollout(
            sample_index=number,
            completion=Completion(token_ids=(5,) * length, logprobs=(-1.0,) * length, finish_reason="stop"),
            reward=0.0,
            components={},
            weights_version=0,
            draw=draw,
        )
        for number, length in enumerate(TRUE.lengths.of_group(draw, TRUE.samples, TRUE.seed))
    ]
    return RolloutGroup(prompt=Prompt(id=str(draw), text="", token_ids=(3,)), rollouts=tuple(rollouts))


def write_run(folder: Path, *, with_samples: Sequence[int] = range(STEPS), **rollout: Any) -> Path:
    folder.mkdir()
    (folder / "recipe.yaml").write_text(json.dumps(values(**rollout)))
    file = MetricsFile(folder / "metrics.jsonl", first_step=0)
    for step, done in enumerate(simulate(TRUE, ALTERNATE, steps=STEPS).steps):
        slow = 10.0 if step == 0 else 1.0  # the first step loads and warms up
        parts = {
            "rollout": slow * (done.learner_waited_s - TRUE.reward_s),
            "reward": TRUE.reward_s,
            "learner": slow * done.learner_s,
            "publish": TRUE.publish_s,
        }
        record = {f"time/{part}_s": seconds for part, seconds in parts.items()}
        record |= {"time/step_s": sum(parts.values()) + OTHER_S, "rollout/rounds": 1.0, "update/selected_fraction": 1.0}
        record["rollout/length_mean"] = done.tokens / TRUE.groups / TRUE.samples
        file.append({"step": step + 1, **record})
        if step in with_samples:
            write_samples(sample_path(folder, step + 1), step + 1, groups_of(step))
    file.close()
    return folder


@pytest.fixture
def measured(tmp_path: Path) -> Measured:
    return read_run(write_run(tmp_path / "run"))


def test_the_parts_of_the_run_are_found_again(measured: Measured):
    assert measured.iteration.fixed == pytest.approx(0.02)
    assert measured.iteration.each == pytest.approx(0.003)
    assert measured.learner.fixed == pytest.approx(3.0)
    assert measured.learner.each == pytest.approx(0.002)
    assert (measured.publish_s, measured.reward_s) == (pytest.approx(0.5), pytest.approx(0.25))
    assert measured.other_s == pytest.approx(0.1)
    assert (measured.steps, measured.workers) == (STEPS - 2, 2)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_is_predicted_from_an_alternating_run(measured: Measured, schedule: str):
    """From its first 10 steps after the warm-up; more steps have the same lengths again."""
    predicted = simulate(measured.setting(Recipe.model_validate(values())), schedule, steps=30)
    true = replace(TRUE, publish_s=TRUE.publish_s + OTHER_S, lengths=measured.lengths)
    assert predicted.seconds == pytest.approx(simulate(true, schedule, steps=30).seconds, rel=0.001)
    assert predicted.staleness_mean == pytest.approx(simulate(true, schedule, steps=30).staleness_mean, abs=0.01)


def test_few_sample_files_are_enough(tmp_path: Path):
    few = read_run(write_run(tmp_path / "run", with_samples=(0, 4, 9)))
    assert len(few.lengths.groups) == 2 * TRUE.groups
    assert (few.steps, few.iteration.fixed) == (STEPS - 2, pytest.approx(0.02))


def test_another_recipe_is_simulated_with_its_own_batches(measured: Measured):
    recipe = Recipe.model_validate(values(prompts_per_step=12, max_staleness=4, workers=1))
    setting = measured.setting(recipe)
    assert (setting.groups, setting.engines, setting.max_staleness) == (12, 1, 4)
    shown = " ".join(" ".join(lines(recipe, measured)).split())
    assert "stream, max_staleness 4" in shown
    assert "rollout.workers = 1, and 2 in the measured run" in shown


def test_the_command_prints_parts_and_schedules(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = write_run(tmp_path / "run")
    assert main(["plan", str(run / "recipe.yaml"), "--measured", str(run), "rollout.schedule=one_step_off"]) == 0
    printed = capsys.readouterr().out
    assert "an engine's iteration         20 ms + 3 ms for each sequence" in printed
    assert "the learner                   3.0 s + 2 ms for each completion token" in printed
    assert [line.split()[0] for line in printed.splitlines() if " %" in line] == ["alternate", "*", "stream,"]
    assert "Fastest: rollout.schedule=stream, " in printed or "is the fastest" in printed
    assert max(map(len, printed.splitlines())) <= 100


@pytest.mark.parametrize(
    ("rollout", "samples", "message"),
    [
        ({"schedule": "stream"}, range(STEPS), "the parts of a step can be measured only while they take turns"),
        ({}, (0, 1), "no sample file of a step after step 2"),
    ],
)
def test_a_run_that_cannot_be_measured_is_refused(
    tmp_path: Path, rollout: dict[str, Any], samples: Sequence[int], message: str
):
    run = write_run(tmp_path / "run", with_samples=samples, **rollout)
    with pytest.raises(InputError, match=message):
        read_run(run)


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", "quickstart", "--measured", str(tmp_path)]) == 2
    assert "no recipe.yaml there" in capsys.readouterr().err
    assert main(["plan", "quickstart", "--measured", str(tmp_path), "--gpus", "8"]) == 2
    assert "expected one of them, not both" in capsys.readouterr().err
