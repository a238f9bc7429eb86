"""Runs whose engines sleep while the learner steps, with real Ray and vLLM. On a CPU nothing is freed.

The order of the calls is the one of a GPU, and one engine here forgets its weights when it sleeps.
"""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import rlkl
from rlkl.errors import ActorDiedError
from rlkl.recipe import Recipe
from rlkl.recipe.io import dump_recipe, load_recipe
from rlkl.training.result import RunResult
from tests.integration.runs import DEADLINE_S, STEPS, make_recipe, start_cli, untimed, wait_for_steps
from tests.integration.test_failures import RULE

COLOCATED = {"placement": "colocated"}
FORGETS = "tests.integration.engines:ForgetsAsleep"


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "policy" / "model.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    """Both runs recorded the same numbers and exported the same weights, bit for bit."""
    assert untimed(one) == untimed(other)
    exported = weights(other)
    assert all(torch.equal(tensor, exported[name]) for name, tensor in weights(one).items())


def with_engine(recipe: Recipe, engine: str) -> Recipe:
    """Replace the engine by one that the recipe's own checks do not know."""
    return recipe.model_copy(update={"rollout": recipe.rollout.model_copy(update={"engine": engine})})


def test_only_a_publish_gives_an_engine_the_weights_that_it_lost_asleep(
    tmp_path: Path, untied_model: Path, whole_run: RunResult
):
    model = Path(shutil.copytree(untied_model, tmp_path / "model"))
    done = rlkl.train(with_engine(make_recipe(tmp_path / "run", model, rollout=COLOCATED), FORGETS))

    assert_same_run(done.run_dir, whole_run.run_dir)
    calls = (model / "calls" / "calls").read_text().split("\n")[:-1]
    turn = ["sleep", "wake weights", "load", "wake kv_cache"]
    assert calls == turn * (STEPS + 1) + ["sleep"], "a first publish, one a step, and the export needs the memory"


def test_an_error_while_the_engines_sleep_loses_no_step_and_a_resume_ends_as_if_there_had_been_none(
    tmp_path: Path, untied_model: Path
):
    (tmp_path / "rule.py").write_text(RULE)
    sections: dict[str, Any] = {"rollout": COLOCATED, "learner": {"minibatches": 2}, "checkpoint": {"every": 50}}
    recipes = {}
    for name, placement in (("fails", "colocated"), ("whole", "separate")):
        written = tmp_path / f"{name}.yaml"
        written.write_text(dump_recipe(make_recipe(tmp_path / name, untied_model, steps=4, **sections)))
        update = f"update={{rule: '{tmp_path}/rule.py:FailsOnce', failed: '{tmp_path}/failed'}}"
        recipes[name] = load_recipe(written, update, f"rollout.placement={placement}")

    with pytest.raises(ActorDiedError, match="a loss of the user's own") as caught:
        rlkl.train(recipes["fails"])
    assert caught.value.__notes__[0].startswith("All 2 finished steps are saved.")

    rlkl.train(recipes["fails"], resume_from=tmp_path / "fails")
    rlkl.train(recipes["whole"])
    assert_same_run(tmp_path / "fails", tmp_path / "whole")


def test_an_interrupted_run_saves_its_step_and_is_resumed_to_the_numbers_of_one_apart(
    tmp_path: Path, untied_model: Path, whole_run: RunResult
):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_recipe(make_recipe(tmp_path / "run", untied_model, rollout=COLOCATED)))
    process = start_cli("train", str(recipe))
    wait_for_steps(process, tmp_path / "run", 2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 128 + signal.SIGTERM, output

    rlkl.train(load_recipe(recipe), resume_from=tmp_path / "run")
    assert_same_run(tmp_path / "run", whole_run.run_dir)
