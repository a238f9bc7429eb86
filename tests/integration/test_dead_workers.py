"""Rollout workers end or hang, and the run goes on as if nothing had happened."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import rlkl
from rlkl.errors import ActorDiedError
from rlkl.recipe.io import dump_recipe
from rlkl.training.result import RunResult
from tests.integration.runs import (
    DEADLINE_S,
    hold_after_steps,
    learners_of,
    make_recipe,
    recorded_stacks,
    records,
    start_cli,
    untimed,
)

UNLUCKY = "tests.integration.engines:Unlucky"


def test_a_worker_that_ends_or_hangs_changes_no_number(
    untied_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """It ends in the publish of the first step, in the sampling of the third, and hangs in that of the fourth."""
    model = tmp_path / "model"
    shutil.copytree(untied_model, model)
    cluster = {"call_timeout_s": 30.0}
    undisturbed = rlkl.train(make_recipe(tmp_path / "lucky", model, rollout={"engine": UNLUCKY}, cluster=cluster))
    for place in ("load-1", "generate-1", "hang-1"):  # versions since the worker's start
        (model / place).touch()

    result = rlkl.train(make_recipe(tmp_path / "unlucky", model, rollout={"engine": UNLUCKY}, cluster=cluster))

    assert sorted(path.name for path in model.iterdir() if "-1" in path.name) == []
    started = [record.message for record in caplog.records if "Another one starts in its place" in record.message]
    stacks = recorded_stacks(result.run_dir)
    assert str(stacks) in started[2]
    assert "tests/integration/engines.py" in stacks.read_text()
    assert [message.partition(":")[0] for message in started] == [
        "rollout worker 0 ended while it was asked to take in weights",
        "rollout worker 0 ended while it was asked to generate",
        "rollout worker 0 did not generate within 30 s. If that is too short, raise cluster.call_timeout_s, or "
        "cluster.start_timeout_s while starting. Stacks of both sides",
    ]
    for now, before in zip(untimed(result.run_dir), untimed(undisturbed.run_dir), strict=True):
        rounding = {name: now.pop(name) for name in list(now) if name.startswith("rollout/mismatch")}
        assert rounding == pytest.approx({name: before.pop(name) for name in rounding}, abs=1e-6)
        assert now == before  # what is sampled again is a batch of its own, so the sampler rounds otherwise
    one, other = (load_file(run / "policy" / "model.safetensors") for run in (result.run_dir, undisturbed.run_dir))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_workers_that_end_while_others_sample_and_the_learner_publishes_are_replaced(
    untied_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Under ``stream`` one thread samples and another one publishes; each of them meets a dead worker."""
    model = tmp_path / "model"
    shutil.copytree(untied_model, model)
    for place in ("generate-1", "load-2"):  # versions since the worker's start
        (model / place).touch()
    stream = {"schedule": "stream", "max_staleness": 2, "workers": 2, "max_new_tokens": 16}
    recipe = make_recipe(tmp_path / "run", model, steps=7, rollout={"engine": UNLUCKY, **stream})

    result = rlkl.train(recipe)

    assert sorted(path.name for path in model.iterdir() if path.name[-2:] in ("-1", "-2")) == []
    started = [record.message for record in caplog.records if "Another one starts in its place" in record.message]
    assert sorted(message.partition(" ended ")[2].partition(":")[0] for message in started) == [
        "while it was asked to generate",
        "while it was asked to take in weights",
    ]
    lines = records(result.run_dir)
    assert [line["step"] for line in lines] == list(range(1, 8))
    assert all(line["weights/verified"] == 1 for line in lines)
    assert [line["weights/version"] for line in lines] == list(range(1, 8))
    assert max(line["rollout/staleness_max"] for line in lines) <= 2
    epochs = [line["data/epoch"] for line in lines]
    assert epochs[-1] == pytest.approx(epochs[0] * 7)  # every draw was trained on once


def test_a_worker_that_ends_again_and_again_ends_the_run_with_its_last_lines(untied_model: Path, tmp_path: Path):
    recipe = make_recipe(tmp_path / "dies", untied_model, rollout={"engine": "tests.integration.engines:Dies"})

    with pytest.raises(ActorDiedError, match="rollout worker 0 ended while it was asked to generate") as caught:
        rlkl.train(recipe)
    assert "It was started anew 2 times, and ended each time before it had finished anything." in str(caught.value)
    assert "The last lines of rollout worker 0" in str(caught.value)
    assert "last words" in str(caught.value)


def test_a_learner_that_ends_is_restarted_and_changes_no_number(
    whole_run: RunResult, untied_model: Path, tmp_path: Path
):
    """SIGKILL to the learner after the third step; the checkpoint is of the second."""
    recipe = make_recipe(tmp_path / "run", untied_model, cluster={"restarts": 1})
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    process = start_cli("train", str(path))
    hold_after_steps(process, tmp_path / "run", 3)

    (learner,) = learners_of(process.pid)
    os.kill(learner, signal.SIGKILL)
    process.send_signal(signal.SIGCONT)
    output, _ = process.communicate(timeout=DEADLINE_S)

    assert process.returncode == 0, output
    assert "The run goes on from its newest checkpoint; cluster.restarts: 0 left" in output
    assert untimed(tmp_path / "run") == untimed(whole_run.run_dir)
    one, other = (load_file(run / "policy" / "model.safetensors") for run in (tmp_path / "run", whole_run.run_dir))
    assert all(torch.equal(one[name], other[name]) for name in one)
