"""Limits of the model and of vLLM on a CPU are refused from config.json alone, by plan and by train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlkl.errors import EnvironmentProblem, RecipeError
from rlkl.recipe import LearnerSection, Recipe, model_limits
from rlkl.recipe.model_limits import CPU_HEAD_SIZES, check_limits
from rlkl.system.machine import Machine

CPU = Machine(cpus=2, memory_gib=8.0)
GPU = Machine(cpus=2, memory_gib=8.0, gpus=("NVIDIA H100, 81559 MiB",))


def recipe(**rollout: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"path": "m"},
            "data": {"source": "x.jsonl", "max_prompt_tokens": 32},
            "rollout": {"max_new_tokens": 32, **rollout},
        }
    )


def model(folder: Path, **config: Any) -> str:
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral", "max_position_embeddings": 64, **config}))
    return str(folder)


def test_a_sequence_longer_than_the_model_takes_is_refused(tmp_path: Path):
    path = model(tmp_path)
    check_limits(recipe(), path, CPU)
    with pytest.raises(RecipeError, match=r"= 32 \+ 33 = 65 tokens, but the model at .* takes at most 64"):
        check_limits(recipe(max_new_tokens=33), path, CPU)


def test_the_text_model_of_a_vision_language_model_counts(tmp_path: Path):
    path = model(tmp_path, max_position_embeddings=None, text_config={"max_position_embeddings": 40})
    with pytest.raises(RecipeError, match="at most 40"):
        check_limits(recipe(), path, CPU)


def test_a_length_that_the_file_leaves_out_is_the_usual_one_of_the_class(tmp_path: Path):
    path = model(tmp_path, model_type="falcon", max_position_embeddings=None)
    with pytest.raises(RecipeError, match="at most 2048"):
        check_limits(recipe(max_new_tokens=3000), path, CPU)
    path = model(tmp_path, model_type="of-nobody", max_position_embeddings=None)
    check_limits(recipe(max_new_tokens=10**6), path, CPU)


@pytest.mark.parametrize(
    "config",
    [{"head_dim": 16}, {"hidden_size": 64, "num_attention_heads": 4}, {"n_embd": 64, "n_head": 4}],
    ids=["head_dim", "hidden_size", "gpt2"],
)
def test_heads_that_vllm_cannot_compute_on_a_cpu_are_refused(tmp_path: Path, config: dict[str, int]):
    path = model(tmp_path, **config)
    with pytest.raises(RecipeError, match=r"heads have 16 numbers.*Set rollout\.engine=hf"):
        check_limits(recipe(), path, CPU)
    check_limits(recipe(), path, GPU)
    check_limits(recipe(engine="hf"), path, CPU)


def test_an_engine_has_no_more_processes_than_heads_can_be_shared_among(tmp_path: Path):
    path = model(tmp_path, hidden_size=128, num_attention_heads=4)
    check_limits(recipe(tensor_parallel=4), path, GPU)
    with pytest.raises(RecipeError, match=r"tensor_parallel = 3.* has 4 attention heads.*expected one of 1, 2, 4"):
        check_limits(recipe(tensor_parallel=3), path, GPU)


def test_without_a_config_here_nothing_is_checked():
    check_limits(recipe(max_new_tokens=10**6), "owner/not-here", CPU)


def test_the_sizes_are_those_of_the_installed_vllm():
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    assert list(CPU_HEAD_SIZES) == CPUAttentionBackend.get_supported_head_sizes()


def test_the_package_of_the_optimizer_must_be_here(monkeypatch: pytest.MonkeyPatch):
    wanted = recipe().model_copy(update={"learner": LearnerSection(optimizer="adamw_8bit")})
    check_limits(wanted, "owner/not-here", CPU)
    monkeypatch.setattr(model_limits, "find_spec", lambda name: None)
    with pytest.raises(
        EnvironmentProblem, match=r"'adamw_8bit' needs the package bitsandbytes: pip install 'rlkl\[8bit\]'"
    ):
        check_limits(wanted, "owner/not-here", CPU)
    elsewhere = wanted.model_copy(update={"cluster": wanted.cluster.model_copy(update={"address": "auto"})})
    check_limits(elsewhere, "owner/not-here", CPU)
    check_limits(recipe(), "owner/not-here", CPU)
