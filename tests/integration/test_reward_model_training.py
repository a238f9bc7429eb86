"""`rlkl reward-model` and `rlkl sft` on the reviews world, small."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from reward_models import SequenceClassifier
from reward_models.training.pairs import load_pairs
from reward_models.training.recipe import RewardModelRecipe, SftRecipe
from reward_models.training.reward_model import score_sequences
from reward_models.training.split import split_by_prompt
from rlkl.cli import main
from rlkl.recipe.io import load_section
from rlkl.tasks import base_model, task_rows
from rlkl.tasks.reviews_language import gold_reward

SMALL = ("learner.epochs=1", "learner.max_steps=30", "learner.threads=1")


def report(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "report.json").read_text())


def training_log(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "halves"
    assert main(["reward-model", "reviews_reward_model", f"run.dir={run_dir}", *SMALL]) == 0
    return run_dir


def test_both_halves_rank_held_out_pairs_and_agree(halves: Path) -> None:
    found = report(halves)
    assert found["pairs"] == 8191  # one pair of the world is twice the same review
    assert found["trained_on"]["reward_model"] + found["trained_on"]["held_out_reward_model"] < 8191 * 0.91
    for name in ("reward_model", "held_out_reward_model"):
        judgement = found["held_out"][name]
        assert judgement["accuracy"] > 0.7  # labels are noisy: knowing all there is to know gives about 0.8
        assert judgement["log_loss"] < 0.6
        assert judgement["calibration_error"] < 0.15
        assert sum(found_bin["pairs"] for found_bin in judgement["calibration"]) == judgement["pairs"]
        log = training_log(halves / f"{name}_training.jsonl")
        assert [line["step"] for line in log] == [1, 10, 20, 30]
        assert log[-1]["loss"] < log[0]["loss"]
    assert found["agreement"]["ranked_alike"] > 0.75
    assert found["agreement"]["pearson"] > 0.7
    assert {path.name for path in halves.iterdir()} == {
        "recipe.yaml",
        "report.json",
        "reward_model",
        "held_out_reward_model",
        "reward_model_training.jsonl",
        "held_out_reward_model_training.jsonl",
    }


def test_the_models_load_in_transformers_and_score_as_reported(halves: Path) -> None:
    recipe = load_section(RewardModelRecipe, halves / "recipe.yaml")
    tokenizer = AutoTokenizer.from_pretrained(halves / "reward_model")
    pairs = load_pairs(recipe.data, tokenizer)
    held_out, parts = split_by_prompt([pair.prompt for pair in pairs], held_out_fraction=0.1, parts=2, seed=recipe.seed)
    assert [len(part) for part in parts] == list(report(halves)["trained_on"].values())
    model = AutoModelForSequenceClassification.from_pretrained(halves / "reward_model")
    assert model.config.rlkl_text == "sampled"
    right = 0
    with torch.inference_mode():
        for row in held_out:
            ids = [torch.tensor([sequence]) for sequence in (pairs[row].chosen_ids, pairs[row].rejected_ids)]
            chosen, rejected = (model(input_ids=one).logits.item() for one in ids)
            right += chosen > rejected
    assert right / len(held_out) == pytest.approx(report(halves)["held_out"]["reward_model"]["accuracy"], abs=0.002)


def test_the_ready_made_reward_scores_as_reported(halves: Path) -> None:
    rows = [row for row in task_rows("reviews/pairs") if row["chosen"] != row["rejected"]]
    held_out, _ = split_by_prompt([row["prompt"] for row in rows], held_out_fraction=0.1, parts=2, seed=0)
    rows = [rows[row] for row in held_out]
    reward = SequenceClassifier(path=str(halves / "reward_model"), batch_size=64)
    prompts = [row["prompt"] for row in rows]
    chosen, rejected = (
        reward(prompts=prompts, completions=[row[side] for row in rows]) for side in ("chosen", "rejected")
    )
    right = sum(one > other for one, other in zip(chosen, rejected, strict=True)) / len(rows)
    assert right == pytest.approx(report(halves)["held_out"]["reward_model"]["accuracy"], abs=0.002)


def test_a_score_does_not_depend_on_its_batch(halves: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(halves / "reward_model")
    model = AutoModelForSequenceClassification.from_pretrained(halves / "reward_model")
    texts = ["the plot was superb .", "the cast was dull . i hated it .", "so bland", "the music was solid and warm ."]
    sequences = [(*tokenizer.encode(text), tokenizer.eos_token_id) for text in texts]
    alone = score_sequences(model, sequences, tokenizer.pad_token_id, batch_size=1)
    together = score_sequences(model, sequences, tokenizer.pad_token_id, batch_size=4)
    assert together == pytest.approx(alone, abs=1e-5)
    assert len(set(alone)) == 4


def test_soft_labels_against_the_order_turn_the_ranking_around(tmp_path: Path) -> None:
    rows = [{**row, "p": 0.1} for row in task_rows("reviews/pairs")[:2500]]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_dir = tmp_path / "run"
    source = (f"data.source={tmp_path / 'pairs.jsonl'}", "data.probability_column=p", "split.halves=false")
    assert main(["reward-model", "reviews_reward_model", f"run.dir={run_dir}", *source, *SMALL]) == 0
    found = report(run_dir)
    tokenizer = AutoTokenizer.from_pretrained(run_dir / "reward_model")
    pairs = load_pairs(load_section(RewardModelRecipe, run_dir / "recipe.yaml").data, tokenizer)[:300]
    model = AutoModelForSequenceClassification.from_pretrained(run_dir / "reward_model")
    chosen = score_sequences(model, [pair.chosen_ids for pair in pairs], tokenizer.pad_token_id, 64)
    rejected = score_sequences(model, [pair.rejected_ids for pair in pairs], tokenizer.pad_token_id, 64)
    assert sum(one < other for one, other in zip(chosen, rejected, strict=True)) > 0.65 * len(pairs)
    assert found["held_out"]["reward_model"]["accuracy"] > 0.6
    assert found["agreement"] is None


def test_adapters_are_merged_into_the_saved_model_and_margins_are_kept(tmp_path: Path) -> None:
    rows = [{**row, "m": 1.0} for row in task_rows("reviews/pairs")[:2500]]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_dir = tmp_path / "run"
    more = (f"data.source={tmp_path / 'pairs.jsonl'}", "data.margin_column=m", "split.halves=false")
    lora = ("model.lora={rank: 8, alpha: 16}", "learner.lr=5e-3", "learner.center_coef=0.01")
    assert main(["reward-model", "reviews_reward_model", f"run.dir={run_dir}", *more, *lora, *SMALL]) == 0
    assert not (run_dir / "reward_model" / "adapter_config.json").exists()
    model = AutoModelForSequenceClassification.from_pretrained(run_dir / "reward_model")
    before = AutoModelForCausalLM.from_pretrained(base_model("reviews"))
    moved = model.model.layers[0].self_attn.q_proj.weight - before.model.layers[0].self_attn.q_proj.weight
    assert 0 < torch.linalg.matrix_rank(moved, atol=1e-4) <= 8
    assert report(run_dir)["held_out"]["reward_model"]["accuracy"] > 0.65


def test_a_warm_start_learns_what_it_is_shown(tmp_path: Path) -> None:
    best = [row for row in task_rows("reviews/pairs") if row["chosen_gold"] > 0.8]
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in best]
    (tmp_path / "best.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_dir = tmp_path / "run"
    source = (f"data.source={tmp_path / 'best.jsonl'}", "data.completion_column=completion")
    assert main(["sft", "reviews_sft", f"run.dir={run_dir}", *source, *SMALL]) == 0
    found = report(run_dir)
    assert found["trained_on"] + found["held_out"] == len(rows)
    assert found["after"]["nats_per_token"] < found["before"]["nats_per_token"] - 0.1
    assert load_section(SftRecipe, run_dir / "recipe.yaml").learner.max_steps == 30
    assert _mean_gold(run_dir / "policy") > _mean_gold(base_model("reviews")) + 0.15


def _mean_gold(policy: Path) -> float:
    """Of what a policy writes on half of the prompts, one completion each."""
    tokenizer = AutoTokenizer.from_pretrained(policy)
    model: Any = AutoModelForCausalLM.from_pretrained(policy)
    prompts = [row["prompt"] for row in task_rows("reviews")]
    prompts = random.Random(0).sample(prompts, 100)
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ids = model.generate(**batch, max_new_tokens=16, do_sample=True, top_k=0, pad_token_id=tokenizer.pad_token_id)
    texts = tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return sum(gold_reward(prompt, text) for prompt, text in zip(prompts, texts, strict=True)) / len(prompts)
