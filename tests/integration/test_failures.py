"""Runs on real actors that fail: what they leave on disk, and what they say."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load_file

import rlkl
from rlkl.errors import ActorDiedError, EnvironmentProblem
from rlkl.recipe.io import dump_recipe, load_recipe
from tests.integration.runs import make_recipe, untimed

LOCAL = {"engine": "hf"}


RULE = """
from pathlib import Path

from rlkl.updates.grpo.rule import Grpo
from rlkl.updates.settings import GrpoSettings, RuleSettings


class Settings(RuleSettings):
    rule: str
    failed: str


class FailsOnce(Grpo):
    Settings = Settings
    calls = 0

    def __init__(self, settings):
        super().__init__(GrpoSettings())
        self.failed = Path(settings.failed)

    def loss(self, *arguments):
        self.calls += 1
        if self.calls == 6 and not self.failed.exists():
            self.failed.touch()
            raise TypeError("a loss of the user's own")
        return super().loss(*arguments)
"""
"""GRPO whose loss raises in the second of the third step's two optimizer steps, in the first run only."""


def test_an_error_in_the_learners_process_saves_the_step_before_and_a_resume_ends_as_if_there_had_been_none(
    untied_model: Path, tmp_path: Path
):
    (tmp_path / "rule.py").write_text(RULE)
    sections = {"rollout": LOCAL, "learner": {"minibatches": 2}, "checkpoint": {"every": 50}, "steps": 4}
    recipes = {}
    for name in ("fails", "whole"):  # in this order: the second one finds the mark of the failure
        written = tmp_path / f"{name}.yaml"
        written.write_text(dump_recipe(make_recipe(tmp_path / name, untied_model, **sections)))
        update = f"update={{rule: '{tmp_path}/rule.py:FailsOnce', failed: '{tmp_path}/failed'}}"
        recipes[name] = load_recipe(written, update)

    with pytest.raises(ActorDiedError, match="a loss of the user's own") as caught:
        rlkl.train(recipes["fails"])
    (note,) = caught.value.__notes__
    assert note.startswith("All 2 finished steps are saved.")
    assert note.endswith(f"rlkl train --resume {tmp_path}/fails")
    assert len(untimed(tmp_path / "fails")) == 2

    rlkl.train(recipes["fails"], resume_from=tmp_path / "fails")
    rlkl.train(recipes["whole"])
    assert untimed(tmp_path / "fails") == untimed(tmp_path / "whole")
    policies = [load_file(tmp_path / name / "policy" / "model.safetensors") for name in recipes]
    assert all(torch.equal(tensor, policies[1][name]) for name, tensor in policies[0].items())


@pytest.fixture
def _actors_work_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray whose processes have another working directory than this one: ``/proc/self/cwd`` is not shared."""
    for name in ("driver", "actors"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "actors")
    ray.init(address="local", num_cpus=4, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    monkeypatch.chdir(tmp_path / "driver")
    yield
    ray.shutdown()


@pytest.mark.usefixtures("_actors_work_elsewhere")
def test_a_run_folder_that_the_learner_does_not_share_is_refused_at_set_up(untied_model: Path):
    recipe = make_recipe(Path("/proc/self/cwd/run"), untied_model, rollout=LOCAL)

    with pytest.raises(EnvironmentProblem, match=r"run\.dir = /proc/self/cwd/run is not shared with the learner"):
        rlkl.train(recipe)
