"""Runs through the real Ray on models with many layers and words, and completions of very different lengths."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rlkl
from rlkl.recipe import Recipe
from tests.integration.runs import DEADLINE_S, REPOSITORY, records, untimed
from tests.realistic.models import ModelChoice, build

LIMIT = 256


def recipe_of(run_dir: Path, folder: Path, prompts: list[Any], **sections: dict[str, Any]) -> Recipe:
    """Three steps of 3 prompts with 4 completions of up to `LIMIT` tokens; the column ``other`` is another prompt."""
    data = run_dir.parent / f"{run_dir.name}.jsonl"
    rows = [{"prompt": prompt, "other": other} for prompt, other in zip(prompts, reversed(prompts), strict=True)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values: dict[str, dict[str, Any]] = {
        "run": {"dir": str(run_dir)},
        "model": {"path": str(folder)},
        "data": {"source": str(data), "max_prompt_tokens": 64},
        "rollout": {"prompts_per_step": 3, "samples_per_prompt": 4, "max_new_tokens": LIMIT},
        "learner": {"lr": 1e-6, "micro_batch_tokens": 1024},
        "tracking": {"samples_every": 1, "wandb": "off"},
        "checkpoint": {"every": 2, "keep": 5},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    rewards = [{"function": "tests.realistic.rewards:odd"}]
    return Recipe.model_validate({**values, "steps": 3, "rewards": rewards})


def completions(run_dir: Path) -> list[list[int]]:
    """Token ids of every completion of the run."""
    tables = [pq.read_table(file) for file in sorted((run_dir / "samples").glob("*.parquet"))]
    return [ids for table in tables for ids in table["completion_ids"].to_pylist()]


def test_a_qwen3_with_many_words_trains_resumes_and_is_exported(models: Path, tmp_path: Path):
    """25 million parameters, 24 layers, two workers with vLLM, prompts from one token to the limit."""
    model = build(ModelChoice(architecture="qwen3"), models)
    tokenizer = AutoTokenizer.from_pretrained(model)
    words = [tokenizer.decode([300 + 7 * n for n in range(length)]) for length in (1, 2, 9, 30, 60, 64)]
    run_dir = tmp_path / "run"
    result = rlkl.train(recipe_of(run_dir, model, words, rollout={"workers": 2}))

    lines = untimed(run_dir)
    assert result.status == "done"
    assert max(line["rollout/mismatch_max"] for line in lines) < 1e-3
    assert all(line["weights/verified"] == 1 for line in lines)
    sampled = sorted(completions(run_dir), key=len)
    assert len(sampled[0]) < 20
    assert len(sampled[-1]) > 150

    policy = AutoModelForCausalLM.from_pretrained(run_dir / "policy").state_dict()
    check_vllm(run_dir / "policy", [ids[:200] for ids in sampled[-4:]], tmp_path)

    # A resume from the second step makes the same third step.
    shutil.rmtree(run_dir / "policy")
    shutil.rmtree(run_dir / "checkpoints" / "step_000003")
    rlkl.train(rlkl.load_recipe(run_dir / "recipe.yaml"), resume_from=run_dir)

    assert untimed(run_dir) == lines
    again = AutoModelForCausalLM.from_pretrained(run_dir / "policy").state_dict()
    assert all(torch.equal(again[name], policy[name]) for name in policy)


def check_vllm(folder: Path, sequences: list[list[int]], tmp_path: Path) -> None:
    """The exported policy has the same log-probs in vLLM as in transformers."""
    policy = AutoModelForCausalLM.from_pretrained(folder)
    file = tmp_path / "sequences.json"
    file.write_text(json.dumps(sequences))
    command = [sys.executable, "-m", "tests.realistic.score", str(folder), "float32", str(file)]
    answer = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=DEADLINE_S)
    assert answer.returncode == 0, answer.stderr
    for sequence, scores in zip(sequences, json.loads(answer.stdout.splitlines()[-1]), strict=True):
        with torch.no_grad():
            logprobs = policy(torch.tensor([sequence])).logits[0].log_softmax(-1)
        wanted = [float(logprobs[t, token]) for t, token in enumerate(sequence[1:])]
        assert scores == pytest.approx(wanted, abs=5e-4)


TERMS = [
    {"term": "kl", "to": "teacher", "direction": "model_to_policy", "coef": 0.01, "top_k": 64},
    {"term": "kl", "to": "reference", "estimator": "k3", "coef": 0.01, "target": 1.0},
    {"term": "entropy", "coef": 0.001},
]


def test_a_chat_model_in_bfloat16_trains_adapters_and_ends_its_turns(models: Path, tmp_path: Path):
    """A Gemma ends its turns with another token than its tokenizer's end of sequence; both stop a completion.

    Two workers; a teacher, the policy without its adapters, and the entropy are terms of the loss; then a resume.
    """
    model, teacher = (
        build(ModelChoice(architecture="gemma", vocabulary=4096, dtype="bfloat16", seed=seed), models)
        for seed in (0, 1)
    )
    chats = [[{"role": "user", "content": "badu gefi " * n}] for n in range(1, 7)]
    sections = {
        "model": {"dtype": "bfloat16", "lora": {"rank": 8}, "gradient_checkpointing": True},
        "models": {"teacher": {"path": str(teacher)}},
        "rollout": {"engine": "vllm", "workers": 2},
        "update": {"terms": TERMS},
        "learner": {"lr": 1e-4},
    }
    run_dir = tmp_path / "run"
    result = rlkl.train(recipe_of(run_dir, model, chats, **sections))

    assert result.status == "done"
    lines = records(run_dir)
    assert all(line["weights/verified"] == 1 for line in lines)
    assert all(line["rollout/truncated_fraction"] < 0.5 for line in lines)
    assert lines[0]["rollout/mismatch_max"] < 2.0
    assert lines[-1]["rollout/mismatch_max"] < 3 * lines[0]["rollout/mismatch_max"] + 0.1
    assert lines[0]["term/kl_reference_nats"] == pytest.approx(0.0, abs=1e-6)
    assert lines[-1]["term/kl_reference_nats"] > 0
    assert lines[0]["term/kl_teacher_nats"] > 0.1
    assert all({"loss/kl_teacher", "loss/kl_reference", "loss/entropy_bonus"} <= line.keys() for line in lines)

    whole = untimed(run_dir)
    shutil.rmtree(run_dir / "policy")
    shutil.rmtree(run_dir / "checkpoints" / "step_000003")
    rlkl.train(rlkl.load_recipe(run_dir / "recipe.yaml"), resume_from=run_dir)
    assert untimed(run_dir) == whole


def test_a_deep_bfloat16_model_trains_on_two_ranks_and_goes_on_with_one(models: Path, tmp_path: Path):
    """24 layers and 151,936 words: PPO with a value head, and an exact KL over tiles of the vocabulary."""
    model = build(ModelChoice(architecture="qwen3", dtype="bfloat16"), models)
    chats = [[{"role": "user", "content": "badu gefi " * n}] for n in range(1, 7)]
    sections = {
        "model": {"dtype": "bfloat16"},
        "rollout": {"engine": "vllm", "workers": 2},
        "update": {"rule": "ppo", "kl_coef": 0.01, "terms": [{"term": "kl", "coef": 0.01, "name": "exact"}]},
        "learner": {"ranks": 2, "lr": 1e-5},
    }
    run_dir = tmp_path / "run"
    result = rlkl.train(recipe_of(run_dir, model, chats, **sections))

    assert result.status == "done"
    lines = untimed(run_dir)
    lengths = [len(ids) for ids in completions(run_dir)]
    assert min(lengths) < 20
    assert max(lengths) > 100
    assert all(line["weights/verified"] == 1 for line in lines)
    assert lines[-1]["rollout/mismatch_max"] < 3 * lines[0]["rollout/mismatch_max"] + 0.1
    assert lines[-1]["term/exact_nats"] > 0

    # One rank makes the third step of two: the sums of the ranks round otherwise.
    shutil.rmtree(run_dir / "policy")
    shutil.rmtree(run_dir / "checkpoints" / "step_000003")
    rlkl.train(rlkl.load_recipe(run_dir / "recipe.yaml", "learner.ranks=1"), resume_from=run_dir)
    alone, two = untimed(run_dir)[-1], lines[-1]
    assert alone["reward/mean"] == two["reward/mean"], "the same completions were sampled"
    for key in ("loss/policy", "loss/value", "loss/exact", "optim/grad_norm", "kl/policy_to_reference"):
        assert alone[key] == pytest.approx(two[key], rel=0.1, abs=1e-3), key


def test_8_bit_moments_in_host_memory_train_a_chat_model_and_resume_bit_for_bit(models: Path, tmp_path: Path):
    """12 layers of width 256 and 151,936 words, two ranks, two workers; all matrices but the embedding have 8 bits."""
    model = build(ModelChoice(architecture="qwen3", dtype="bfloat16", hidden=256, layers=12), models)
    chats = [[{"role": "user", "content": "badu gefi " * n}] for n in range(1, 7)]
    sections = {
        "model": {"dtype": "bfloat16"},
        "rollout": {"engine": "vllm", "workers": 2},
        "learner": {"ranks": 2, "lr": 1e-5, "optimizer": "adamw_8bit", "offload": "optimizer"},
    }
    run_dir = tmp_path / "run"
    result = rlkl.train(recipe_of(run_dir, model, chats, **sections))

    assert result.status == "done"
    lines = untimed(run_dir)
    lengths = [len(ids) for ids in completions(run_dir)]
    assert min(lengths) < 20
    assert max(lengths) > 100
    assert all(line["weights/verified"] == 1 for line in lines)
    assert all(0.5 < line["correction/weight_mean"] < 1.5 for line in lines)
    # Each parameter takes 4 bytes and its moments 2.03, or 8 in the embedding.
    embedding, whole = 151_936 * 256, AutoModelForCausalLM.from_pretrained(model).num_parameters()
    kept = (run_dir / "checkpoints" / "step_000003" / "learner").glob("*.distcp")
    assert sum(file.stat().st_size for file in kept) < 12 * embedding + 6.1 * (whole - embedding) + 4_000_000

    shutil.rmtree(run_dir / "policy")
    shutil.rmtree(run_dir / "checkpoints" / "step_000003")
    rlkl.train(rlkl.load_recipe(run_dir / "recipe.yaml"), resume_from=run_dir)
    assert untimed(run_dir) == lines


LAGGED = {"term": "kl", "to": "lagged", "lag": 1, "coef": 0.1}
SPAN = {"term": "span", "to": "teacher"}


@pytest.mark.parametrize(
    "update",
    [
        {"rule": "distill", "top_k": 64},
        {"rule": "distill", "corrections": 1, "kept_mass": 0.9, "gate_tokens": 8, "terms": [SPAN, LAGGED]},
        {"rule": "distill", "placement": "reward", "reward_coef": 0.1},
        {"rule": "listwise", "over_tokens": "mean"},
        {"rule": "grpo", "dro": {"temperature": 0.5}, "terms": [{"term": "kl", "estimator": "cauchy_schwarz"}]},
        {"rule": "grpo", "terms": [{"term": "rewording", "column": "other"}, LAGGED]},
    ],
    ids=["distill", "distill corrected", "distill as a reward", "listwise", "dro", "rewording"],
)
def test_further_rules_train_adapters_of_a_chat_model_in_bfloat16(models: Path, tmp_path: Path, update: dict[str, Any]):
    """Two workers with vLLM and completions of any length; the third step is the same after a resume."""
    model, teacher = (
        build(ModelChoice(architecture="gemma", vocabulary=4096, dtype="bfloat16", seed=seed), models)
        for seed in (0, 1)
    )
    chats = [[{"role": "user", "content": "badu gefi " * n}] for n in range(1, 7)]
    sections: dict[str, dict[str, Any]] = {
        "model": {"dtype": "bfloat16", "lora": {"rank": 8}, "gradient_checkpointing": True},
        "models": {"teacher": {"path": str(teacher)}} if update["rule"] == "distill" else {},
        "rollout": {"engine": "vllm", "workers": 2},
        "update": update,
        "learner": {"lr": 1e-4},
    }
    run_dir = tmp_path / "run"
    rlkl.train(recipe_of(run_dir, model, chats, **sections))

    whole = untimed(run_dir)
    assert all(line["weights/verified"] == 1 for line in whole)
    assert all(0 < line["optim/grad_norm"] < math.inf for line in whole)
    if update["rule"] == "distill":
        assert whole[0]["distill/kl"] > 0.1
    if "corrections" in update:
        assert all(line["rollout/corrected_fraction"] > 0.5 for line in whole)
    if LAGGED in update.get("terms", []):
        assert whole[0]["term/kl_lagged_nats"] == pytest.approx(0, abs=1e-6)
        assert whole[2]["term/kl_lagged_nats"] > 1e-6
    lengths = [len(ids) for ids in completions(run_dir)]
    assert max(lengths) > 4 * min(lengths)
    shutil.rmtree(run_dir / "policy")
    shutil.rmtree(run_dir / "checkpoints" / "step_000003")
    rlkl.train(rlkl.load_recipe(run_dir / "recipe.yaml"), resume_from=run_dir)
    assert untimed(run_dir) == whole
