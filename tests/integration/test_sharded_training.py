"""A learner of two ranks with real Ray and vLLM, resumed by one; and a rank that dies or hangs."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import rlkl
from rlkl.errors import RlklError
from tests.integration.runs import DEADLINE_S, learners_of, make_recipe, recorded_stacks, records

STEPS = 3


def test_two_ranks_train_publish_export_and_are_resumed_by_one(tmp_path: Path, untied_model: Path):
    recipe = make_recipe(
        tmp_path / "run", untied_model, steps=STEPS, learner={"ranks": 2, "threads": 1, "micro_batch_tokens": 128}
    )
    done = rlkl.train(recipe)

    lines = records(done.run_dir)
    assert (done.status, len(lines)) == ("done", STEPS)
    assert all(line["weights/verified"] == 1 for line in lines)
    assert max(line["rollout/mismatch_max"] for line in lines) < 1e-4
    assert max(line["weights/probe_max"] for line in lines) < 1e-4
    saved = done.run_dir / "checkpoints" / f"step_{STEPS:06d}" / "learner"
    assert {path.name for path in saved.glob("*.distcp")} == {"__0_0.distcp", "__1_0.distcp"}
    policy = AutoModelForCausalLM.from_pretrained(done.run_dir / "policy").state_dict()
    start = AutoModelForCausalLM.from_pretrained(untied_model).state_dict()
    assert any(not torch.equal(policy[name], start[name]) for name in start)

    longer = make_recipe(tmp_path / "run", untied_model, steps=STEPS + 1, learner={"ranks": 1, "threads": 1})
    resumed = rlkl.train(longer, resume_from=done.run_dir)
    lines = records(resumed.run_dir)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 2))
    assert lines[-1]["weights/verified"] == 1
    assert lines[-1]["rollout/mismatch_max"] < 1e-4


def signal_one(run_dir: Path, number: signal.Signals) -> None:
    """Once a step is recorded, send a signal to the younger process of the learner."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        metrics = run_dir / "metrics.jsonl"
        if metrics.exists() and metrics.read_text():
            os.kill(learners_of(os.getpid())[-1], number)
            return
        time.sleep(0.05)


def fail(run_dir: Path, model: Path, number: signal.Signals) -> str:
    """Send a signal to one of two ranks during a run, and return the error that ends the run."""
    cluster = {"call_timeout_s": 45.0}
    learner = {"ranks": 2, "threads": 1}
    recipe = make_recipe(run_dir, model, steps=500, rollout={"engine": "hf"}, learner=learner, cluster=cluster)
    sender = threading.Thread(target=signal_one, args=(run_dir, number))
    sender.start()
    started = time.monotonic()
    with pytest.raises(RlklError) as caught:
        rlkl.train(recipe)
    sender.join()
    assert time.monotonic() - started < DEADLINE_S
    return str(caught.value)


def test_a_rank_that_dies_ends_the_run_with_its_name(tmp_path: Path, untied_model: Path):
    error = fail(tmp_path / "run", untied_model, signal.SIGKILL)
    assert re.search(r"learner rank [01] ended, and the other ranks cannot go on without it", error)


def test_a_rank_that_hangs_ends_the_run_and_is_named_beside_the_stacks(tmp_path: Path, untied_model: Path):
    error = fail(tmp_path / "run", untied_model, signal.SIGSTOP)
    file = recorded_stacks(tmp_path / "run")
    assert str(file) in error
    assert re.search(r"-learner-rank-[01]\.txt", file.name)
    assert "It is stopped, as by SIGSTOP." in file.read_text()
