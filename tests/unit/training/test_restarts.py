"""`cluster.restarts`: a dead learner is replaced, unless the run was asked to end. Real learner and files; no Ray."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from rlkl.errors import ActorDiedError
from rlkl.recipe import Recipe
from rlkl.training.setup import train
from rlkl.types import Learned
from tests.models import tiny_qwen3
from tests.unit.training.test_failures import LocalHands, digits, recipe_for, records

DIES_AT = 2
"""Index of the step in which the first learner dies."""


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    model = tiny_qwen3(tmp_path / "model", tied=False, seed=0)
    sections: dict[str, Any] = {"cluster": {"restarts": 1}, "checkpoint": {"every": 1}}
    return recipe_for(model, run={"dir": str(tmp_path / "run")}, **sections)


class Mortal(LocalHands):
    """Hands whose first learner dies and answers nothing more."""

    made = 0
    signal_number: int | None = None
    """The signal that the run gets before the learner dies."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        type(self).made += 1
        self._is_mortal, self._is_dead = type(self).made == 1, False

    def make_reward_worker(self, *arguments: Any) -> None: ...

    def learn(self, *arguments: Any, step: int, **named: Any) -> Learned:
        if self._is_mortal and step == DIES_AT:
            self._is_dead = True
            if self.signal_number is not None:
                os.kill(os.getpid(), self.signal_number)
        self._answer()
        return super().learn(*arguments, step=step, **named)

    def finished_steps(self) -> int:
        self._answer()
        return super().finished_steps()

    def _answer(self) -> None:
        if self._is_dead:
            raise ActorDiedError("the learner ended")


def hands_with(number: int | None, monkeypatch: pytest.MonkeyPatch) -> type[Mortal]:
    kind = type("MortalOfThisTest", (Mortal,), {"signal_number": number})
    monkeypatch.setattr("rlkl.training.setup.RayHands", lambda recipe, *_: kind(recipe))
    return kind


def test_a_dead_learner_is_replaced_and_every_step_is_recorded(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    hands = hands_with(None, monkeypatch)

    assert train(recipe, rewards=[digits]).status == "done"
    assert hands.made == 2
    assert list(records(tmp_path / "run")) == [1, 2, 3, 4]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_learner_that_dies_after_a_signal_ends_the_run(
    number: signal.Signals, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Slurm sends SIGTERM to all processes of a job."""
    hands = hands_with(number, monkeypatch)

    with pytest.raises(ActorDiedError) as caught:
        train(recipe, rewards=[digits])
    assert hands.made == 1
    assert list(records(tmp_path / "run")) == [1, 2]
    assert f"cluster.restarts does not apply: {number.name} has asked the run to end." in caught.value.__notes__
