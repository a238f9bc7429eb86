"""A learner of two ranks with real Ray and vLLM, resumed by one; and a rank that dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import rlkl
from rlkl.errors import ActorDiedError
from tests.integration.runs import DEADLINE_S, make_recipe, records

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


def learner_processes() -> list[int]:
    """The processes of learner actors that descend from this one."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and b"ray::LearnerWorker" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def kill_one(run_dir: Path, before: set[int]) -> None:
    """Once a step is recorded, kill the younger process of the learner."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        metrics = run_dir / "metrics.jsonl"
        own = sorted(set(learner_processes()) - before)
        if metrics.exists() and metrics.read_text() and len(own) == 2:
            os.kill(own[-1], signal.SIGKILL)
            return
        time.sleep(0.05)


def test_a_rank_that_dies_ends_the_run_with_its_name(tmp_path: Path, untied_model: Path):
    recipe = make_recipe(
        tmp_path / "run", untied_model, steps=500, rollout={"engine": "hf"}, learner={"ranks": 2, "threads": 1}
    )
    killer = threading.Thread(target=kill_one, args=(tmp_path / "run", set(learner_processes())))
    killer.start()
    started = time.monotonic()
    with pytest.raises(ActorDiedError, match=r"learner rank [01] ended, and the other ranks cannot go on without it"):
        rlkl.train(recipe)
    killer.join()
    assert time.monotonic() - started < DEADLINE_S
