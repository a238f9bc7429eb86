"""Policies of many architectures: log-probs against transformers, adapters merged, references that start at KL 0."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlkl.errors import EnvironmentProblem, RecipeError
from rlkl.models.language_model import LanguageModel
from rlkl.models.policy import AdapterOff, Policy, build_reference
from rlkl.recipe import LoraSection, ModelSection
from tests.models import random_model, tiny_qwen2_5_vl, tiny_qwen3

CPU = torch.device("cpu")
IDS_BT = torch.randint(3, 90, (3, 40), generator=torch.Generator().manual_seed(0))
ARCHITECTURES = (
    "cohere",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "granite",
    "llama",
    "mistral",
    "opt",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def seeing(folder: Path) -> str:
    return str(tiny_qwen2_5_vl(folder / "seeing", seed=0))


@pytest.fixture(params=ARCHITECTURES, scope="module")
def path(request: pytest.FixtureRequest, folder: Path) -> str:
    return str(random_model(request.param, folder / request.param, seed=0))


def policy(path: str | Path, lora: Mapping[str, Any] | None = None, **section: Any) -> Policy:
    adapters = None if lora is None else LoraSection(rank=4, **lora)
    return Policy(str(path), ModelSection(path=str(path), lora=adapters, **section), device=CPU, seed=0)


@torch.no_grad()
def logprobs(model: Any) -> Tensor:
    return model.head(model.hidden(IDS_BT).flatten(0, 1)).float().log_softmax(-1).view(*IDS_BT.shape, -1)


@torch.no_grad()
def move(trained: Policy) -> None:
    """Moves every trained parameter; an adapter counts from its first step on."""
    generator = torch.Generator().manual_seed(1)
    for parameter in trained.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.03)


def saved(trained: Policy, folder: Path) -> Tensor:
    trained.save(folder)
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
        return model(input_ids=IDS_BT).logits.log_softmax(-1)


@pytest.mark.parametrize("lora", [None, {}], ids=["full", "LoRA"])
def test_a_saved_policy_gives_transformers_the_learners_log_probs(
    path: str, lora: dict[str, Any] | None, tmp_path: Path
):
    """With dropout in its configuration, after a step, in training mode."""
    trained = policy(path, lora)
    start = logprobs(trained)
    move(trained)

    after = logprobs(trained)

    assert (after - start).abs().max() > 0.05
    torch.testing.assert_close(saved(trained, tmp_path / "saved"), after, rtol=0, atol=5e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [None, {}], ids=["full", "LoRA"])
def test_a_reference_by_path_is_the_policy_at_its_start_bit_for_bit(path: str, lora: dict[str, Any] | None, dtype: str):
    if path.endswith("qwen3_moe") and lora is not None:
        lora = {"target_modules": ["q_proj", "o_proj"]}  # in bfloat16 its experts take no adapters
    start = policy(path, lora, dtype=dtype)

    reference = build_reference(start, path, path)

    assert not isinstance(reference, AdapterOff)
    assert torch.equal(logprobs(reference), logprobs(start))


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_adapters_on_embeddings_and_head_are_published_merged(target: str, folder: Path, tmp_path: Path):
    trained = policy(tiny_qwen3(folder / "untied", tied=False, seed=0), {"target_modules": [target, "q_proj"]})
    start = logprobs(trained)
    move(trained)

    assert (logprobs(trained) - start).abs().max() > 0.05
    torch.testing.assert_close(saved(trained, tmp_path / "saved"), logprobs(trained), rtol=0, atol=5e-5)


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_adapters_on_tied_embeddings_are_refused(target: str, folder: Path):
    tied = tiny_qwen3(folder / "tied", tied=True, seed=0)
    with pytest.raises(RecipeError, match=rf"model\.lora\.target_modules = \['{target}'\] .*tie_word_embeddings"):
        policy(tied, {"target_modules": [target]})


def test_unknown_target_modules_are_refused_with_those_that_there_are(folder: Path):
    with pytest.raises(RecipeError, match=r"target_modules = \['qproj'\]: no adapters can be put there.*q_proj"):
        policy(tiny_qwen3(folder / "untied", tied=False, seed=0), {"target_modules": ["qproj"]})


def test_every_stacked_expert_gets_adapters(folder: Path):
    trained = policy(random_model("qwen3_moe", folder / "moe", seed=0), {})
    (-logprobs_with_gradient(trained).mean()).backward()

    adapters = {name: p for name, p in trained.named_parameters() if p.requires_grad}

    assert all(p.grad is not None for p in adapters.values())
    assert sum(".experts." in name and "lora_B" in name for name in adapters) == 2 * trained.layer_count


def test_adapters_that_bfloat16_would_round_away_are_refused_with_those_that_it_does_not(folder: Path):
    moe = random_model("qwen3_moe", folder / "moe", seed=0)
    with pytest.raises(RecipeError, match=r"stacked experts.*target_modules=\[k_proj, o_proj, q_proj, v_proj\]"):
        policy(moe, {}, dtype="bfloat16")

    attention = policy(moe, {"target_modules": ["k_proj", "o_proj", "q_proj", "v_proj"]}, dtype="bfloat16")

    assert {p.dtype for p in attention.parameters() if p.requires_grad} == {torch.bfloat16}


def logprobs_with_gradient(model: Any) -> Tensor:
    return model.head(model.hidden(IDS_BT).flatten(0, 1)).float().log_softmax(-1)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_vision_tower_gets_no_adapters(seeing: str, frozen: bool):
    trained = policy(seeing, {}, freeze_vision=frozen)

    with torch.no_grad():
        AdapterOff(trained).hidden(IDS_BT)  # peft makes every adapter trainable again afterwards

    assert any(p.requires_grad for p in trained.model.base_model.visual.parameters()) is not frozen
    assert any("visual" in name and "lora" in name for name, _ in trained.named_parameters()) is not frozen
    assert any("language_model" in name and p.requires_grad for name, p in trained.named_parameters())


def test_adapters_on_nothing_but_a_frozen_tower_are_refused(seeing: str):
    with pytest.raises(RecipeError, match=r"outside the vision tower, which model\.freeze_vision leaves out"):
        policy(seeing, {"target_modules": ["qkv"]}, freeze_vision=True)


def test_noise_that_stays_on_while_training_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    noisy = random_model("opt", folder / "opt", seed=0)
    monkeypatch.setattr("rlkl.models.language_model._without_dropout", lambda model: model.train())
    with pytest.raises(EnvironmentProblem, match="gives other log-probs each time while it trains"):
        LanguageModel(str(noisy), dtype=torch.float32, device=CPU)


def test_a_saved_policy_ends_where_the_sampler_ended(folder: Path, tmp_path: Path):
    """``generate`` on the exported policy stops at the turn end too, which the base model's settings need not name."""
    trained = policy(tiny_qwen3(folder / "untied", tied=False, seed=0))
    trained.stop_at((1, 7))
    trained.save(tmp_path)

    assert AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.eos_token_id == [1, 7]
