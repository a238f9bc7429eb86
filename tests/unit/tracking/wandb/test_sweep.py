"""The sweep file of W&B: the command line that an agent builds from it is one that rlkl accepts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from rlkl.cli import _parse as command_line
from rlkl.recipe.io import load_recipe
from rlkl.tracking.metrics.registry import find_definition

FILE = Path(__file__).parents[4] / "recipes" / "wandb_sweep.yaml"
SWEEP: dict[str, Any] = yaml.safe_load(FILE.read_text())


def words_of(chosen: dict[str, Any]) -> list[str]:
    """The command line of a run with the chosen values, as wandb's agent builds it."""
    expanded = create_sweep_command_args({"args": {name: {"value": value} for name, value in chosen.items()}})
    expanded["env"] = ["/usr/bin/env"]
    words: list[str] = []
    for word in create_sweep_command(list(SWEEP["command"])):
        name = word.removeprefix("${").removesuffix("}")
        words += expanded[name] if word.startswith("${") else [word]
    return words


@pytest.mark.parametrize("drop", [True, False])
def test_an_agent_starts_a_run_with_the_chosen_values(drop: bool):
    chosen = {"update.kl_coef": 0.07, "learner.lr": 1e-05, "update.drop_uniform_groups": drop}
    assert set(chosen) == set(SWEEP["parameters"])
    env, program, *words = words_of(chosen)
    assert (env, program) == ("/usr/bin/env", SWEEP["program"])
    options = command_line(words)
    assert options.command == "train"
    recipe = load_recipe(*options.words)
    values = recipe.model_dump()
    assert (values["update"]["kl_coef"], recipe.learner.lr, values["update"]["drop_uniform_groups"]) == (
        0.07,
        1e-5,
        drop,
    )
    assert recipe.tracking.wandb == "online"


def test_the_sweep_maximises_a_metric_that_a_run_summarises():
    name, _, value = SWEEP["metric"]["name"].rpartition(".")
    assert find_definition(name) is not None
    assert value in ("last", "max")
