"""A step with a number that is not finite: its batch is kept, it is skipped or ends the run, and it comes again."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlkl.cli import main
from rlkl.errors import InputError, NumericalFault
from rlkl.recipe import Recipe
from rlkl.recipe.io import dump_recipe, recipe_from
from rlkl.recipe.run_dir import RECIPE_FILE
from rlkl.training.checkpoint import Checkpoints, read_state
from rlkl.training.faults import IN_A_ROW, read_fault
from rlkl.training.hands import Finished
from rlkl.training.loop import Trainer
from rlkl.types import Completion
from tests.models import tiny_qwen3
from tests.unit.training.test_failures import build, recipe_for, records

RULE = """
from dataclasses import replace

import torch

from rlkl.batch import LossOutput, Signal
from rlkl.functional.reduce import masked, sequence_sum_weights
from rlkl.updates.base import PolicyUpdate
from rlkl.updates.settings import RuleSettings


class Breaks(PolicyUpdate):
    class Settings(RuleSettings):
        at: list[int] = [1]
        how: str = "gradient"

    @property
    def needs(self):
        return frozenset({Signal.POLICY_LOGPROBS})

    def credit(self, batch):
        return replace(batch, advantages_BT=batch.rewards_B[:, None] * batch.response_BT)

    def loss(self, batch, signals):
        weights_BT = sequence_sum_weights(batch.response_BT, batch.denominators)
        loss = -(weights_BT * batch.advantages_BT * masked(signals[Signal.POLICY_LOGPROBS], batch.response_BT)).sum()
        if round(batch.progress * 4) in self.settings.at and bool((batch.group_B == 2).any()):
            loss = loss + torch.inf if self.settings.how == "loss" else loss * torch.nan
        return LossOutput(loss=loss, terms={}, metrics={})
"""


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    (tmp_path / "breaks.py").write_text(RULE)
    return tiny_qwen3(tmp_path / "model", tied=False, seed=0)


def run_of(tmp_path: Path, model_path: Path, **update: Any) -> tuple[Trainer, Recipe]:
    """A run of four steps of four prompts whose second step breaks, unless ``update`` says otherwise."""
    on_fault = update.pop("on_fault", "stop")
    learner = {"lr": 1e-2, "device": "cpu", "threads": 1, "on_fault": on_fault, "minibatches": 2}
    values = recipe_for(model_path, learner=learner).model_dump(mode="json", exclude_unset=True)
    recipe = recipe_from({**values, "update": {"rule": f"{tmp_path / 'breaks.py'}:Breaks", **update}})
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / RECIPE_FILE).write_text(dump_recipe(recipe))
    return build(run_dir, recipe), recipe


@pytest.mark.parametrize(
    ("how", "told"), [("gradient", "the gradient is not finite"), ("loss", "the loss is not finite")]
)
def test_a_fault_stops_the_run_keeps_its_batch_and_comes_again(
    how: str, told: str, tmp_path: Path, model_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = run_of(tmp_path, model_path, how=how)
    folder = tmp_path / "run" / "faults" / "step_000002"

    with pytest.raises(NumericalFault, match=told) as caught:
        run.run()

    notes = " ".join(caught.value.__notes__)
    assert f"Its batch is kept in {folder}. Look into it with: rlkl inspect {folder}" in notes
    assert "All 1 finished steps are saved." in notes
    assert read_state(Checkpoints(tmp_path / "run", keep=2).latest()).step == 1
    fault = read_fault(folder)
    assert (fault.step, len(fault.examples)) == (1, 16)
    texts = {values["prompt"]["text"] for values in json.loads((folder / "batch.json").read_text())["examples"]}
    assert len(texts) == 4

    capsys.readouterr()
    assert main(["inspect", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert f"now:  {told}" in printed
    assert "1 of 4 not finite" in printed
    broken = next(example.prompt.id for example in fault.examples if example.group == 2)
    assert f"sequences of {broken}" in printed


def test_a_fault_that_is_skipped_leaves_the_weights_and_is_counted(
    tmp_path: Path, model_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, _ = run_of(tmp_path, model_path, on_fault="skip")

    result = run.run()

    assert result.status == "done"
    found = records(tmp_path / "run")
    assert [found[step]["optim/fault"] for step in (1, 2, 3, 4)] == [0, 1, 0, 0]
    assert found[2]["optim/skipped"] == 1
    assert found[2]["reward/mean"] >= 0, "what was sampled is recorded all the same"
    assert "step 2 is skipped: the gradient is not finite" in caplog.text
    assert (tmp_path / "run" / "faults" / "step_000002" / "checkpoint" / "policy").is_dir()


def test_several_faults_in_a_row_stop_a_run_that_skips_them(tmp_path: Path, model_path: Path) -> None:
    run, _ = run_of(tmp_path, model_path, on_fault="skip", at=[0, 1, 2, 3])

    with pytest.raises(NumericalFault) as caught:
        run.run()

    assert f"the last of {IN_A_ROW} such steps in a row" in " ".join(caught.value.__notes__)
    assert sorted(path.name for path in (tmp_path / "run" / "faults").iterdir()) == [
        "step_000001",
        "step_000002",
        "step_000003",
    ]


def test_a_resume_may_skip_what_has_stopped_the_run(tmp_path: Path, model_path: Path) -> None:
    run, recipe = run_of(tmp_path, model_path)
    with pytest.raises(NumericalFault):
        run.run()
    skipping = recipe.model_copy(update={"learner": recipe.learner.model_copy(update={"on_fault": "skip"})})

    checkpoint = Checkpoints(tmp_path / "run", keep=2).latest()
    again = build(tmp_path / "run", skipping, first_step=1)
    again.resume(checkpoint, read_state(checkpoint))
    assert again.run().status == "done"
    assert records(tmp_path / "run")[2]["optim/fault"] == 1


def test_a_fault_whose_folder_cannot_be_written_is_still_the_error(tmp_path: Path, model_path: Path) -> None:
    run, _ = run_of(tmp_path, model_path)
    (tmp_path / "run" / "faults").write_text("a file")

    with pytest.raises(NumericalFault, match="the gradient is not finite") as caught:
        run.run()
    assert "Its batch could not be kept" in " ".join(caught.value.__notes__)


def test_another_folder_is_no_fault(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no fault of a run .*faults/step_000012"):
        read_fault(tmp_path)


def test_a_log_prob_that_the_sampler_holds_for_impossible_is_a_fault(
    tmp_path: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = run_of(tmp_path, model_path, at=[], on_fault="skip")
    original, batches = run.hands.sampler.finished, []

    def finished() -> Iterator[Finished]:
        batches.append("batch")
        for part in original():
            yield [(number, impossible(one) if len(batches) == 2 and number == 5 else one) for number, one in part]

    monkeypatch.setattr(run.hands.sampler, "finished", finished)
    assert run.run().status == "done"
    assert [record["optim/fault"] for record in records(tmp_path / "run").values()] == [0, 1, 0, 0]
    assert main(["inspect", str(tmp_path / "run" / "faults" / "step_000002")]) == 0
    assert "now: the sampler gave the log-prob -inf for token 0" in " ".join(capsys.readouterr().out.split())


def impossible(completion: Completion) -> Completion:
    return replace(completion, logprobs=(-math.inf, *(completion.logprobs or ())[1:]))
