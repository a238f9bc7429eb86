"""Training on stored pairs in a real Ray, where there is a learner and nobody else."""

import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

import rlkl
from rlkl.recipe import Recipe
from tests.integration.runs import records, untimed


def write_pairs(path: Path) -> str:
    """Questions of one digit; the preferred answer is the digit, the other one a letter."""
    rng = random.Random(0)
    rows = [{"prompt": f"{n % 10}?", "good": str(n % 10), "bad": rng.choice("abcdef")} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def make_recipe(folder: Path, name: str, model: Path, **update: object) -> Recipe:
    return Recipe.model_validate(
        {
            "run": {"dir": str(folder / name)},
            "steps": 6,
            "model": {"path": str(model), "lora": {"rank": 4}},
            "data": {"source": write_pairs(folder / "p.jsonl"), "chosen_column": "good", "rejected_column": "bad"},
            "rollout": {"workers": 0, "prompts_per_step": 16, "max_new_tokens": 4},
            "update": {"rule": "sparsepo", "beta": 1.0, **update},
            "learner": {"lr": 1e-2},
            "tracking": {"wandb": "off", "samples_every": 2},
            "checkpoint": {"every": 2},
        }
    )


@pytest.mark.parametrize("mask", ["none", "sparse_independent"])
def test_a_run_without_workers_learns_the_preference(untied_model: Path, tmp_path: Path, mask: str):
    result = rlkl.train(make_recipe(tmp_path, "run", untied_model, mask=mask))

    lines = records(result.run_dir)
    assert result.status == "done"
    assert lines[0]["loss/preference"] == pytest.approx(0.6931, abs=1e-3)
    assert lines[-1]["loss/preference"] < 0.3
    assert lines[-1]["update/preference_accuracy"] == 1
    assert not [key for key in lines[0] if key.startswith(("weights/", "reward/", "rollout/mismatch"))]
    start = AutoModelForCausalLM.from_pretrained(untied_model).state_dict()
    policy = AutoModelForCausalLM.from_pretrained(result.run_dir / "policy").state_dict()
    assert any(not torch.equal(policy[name], start[name]) for name in start)

    rows = pq.read_table(result.run_dir / "samples" / "step_000006.parquet").to_pylist()
    assert [row["reward"] for row in rows] == [1.0, 0.0] * 16
    assert all(row["logprobs"] is None for row in rows)
    if mask == "none":
        assert "kl_mask" not in rows[0]
    else:
        assert all(len(row["reward_mask"]) == len(row["completion_ids"]) for row in rows)
        assert len({value for row in rows for value in row["kl_mask"]}) > 1


def test_a_resumed_run_on_pairs_goes_on_bit_for_bit(untied_model: Path, tmp_path: Path):
    whole = rlkl.train(make_recipe(tmp_path, "whole", untied_model))
    short = make_recipe(tmp_path, "cut", untied_model)
    rlkl.train(short.model_copy(update={"steps": 4}))
    rlkl.train(short, resume_from=tmp_path / "cut")

    assert untimed(tmp_path / "cut") == untimed(whole.run_dir)
