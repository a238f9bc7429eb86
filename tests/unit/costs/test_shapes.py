"""Shapes are read from config.json, and their parameters are those of the real models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig

from rlkl.costs.known_shapes import known_names, known_shape
from rlkl.costs.shapes import shape_of_config
from rlkl.errors import InputError
from rlkl.models.language_model import model_class

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
}

PUBLISHED = {
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-32B-Instruct": 32_763_876_352,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B-Base": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "huggyllama/llama-7b": 6_738_415_616,
    "gpt2": 124_439_808,
    "insub/gpt2-large-imdb-fine-tuned": 774_030_080,
    "EleutherAI/gpt-j-6b": 6_050_882_784,
    "EleutherAI/pythia-1.4b-deduped": 1_414_647_808,
}
"""Parameters as the hub counts them in each model's files."""


def meta_parameters(config: Any) -> int:
    """Count the parameters of the model that transformers builds, each tied tensor once."""
    with torch.device("meta"):
        model = model_class(config).from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def test_parameters_by_hand():
    shape = shape_of_config(LLAMA, "m")
    attention, mlp = 8 * (4 + 2 * 2) * 2 + 4 * 2 * 8, 3 * 8 * 16
    assert shape.layer == attention + mlp + 2 * 8
    assert shape.root == 2 * 100 * 8 + 8
    assert shape.parameters == 2 * shape.layer + shape.root
    assert shape.cache_values == 2 * 2 * 2 * 2


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_model_that_transformers_builds(family: str, tied: bool):
    values = LLAMA | {"model_type": family, "tie_word_embeddings": tied, "head_dim": 4 if family == "qwen3" else 2}
    config = AutoConfig.for_model(**values)
    assert shape_of_config(config.to_dict(), "m").parameters == meta_parameters(config)


@pytest.mark.parametrize("biases", [{"attention_bias": True}, {"mlp_bias": True}])
def test_biases_are_counted(biases: dict[str, bool]):
    values: dict[str, Any] = LLAMA | biases
    config = AutoConfig.for_model(**values)
    assert shape_of_config(config.to_dict(), "m").parameters == meta_parameters(config)


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "gpt2", "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": 50},
        {"model_type": "gptj", "n_embd": 8, "n_layer": 2, "n_head": 2, "rotary_dim": 4, "vocab_size": 50},
        {
            "model_type": "gpt_neox",
            "hidden_size": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "vocab_size": 50,
        },
    ],
    ids=lambda values: values["model_type"],
)
def test_older_families_are_counted_whole(values: dict[str, Any]):
    config = AutoConfig.for_model(**values)
    shape = shape_of_config(config.to_dict(), "m")
    assert shape.parameters == meta_parameters(config)
    assert shape.mlp_matrices == 2


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_built_in_table_gives_the_published_parameters(name: str):
    shape = known_shape(name)
    assert shape is not None
    assert shape.parameters == PUBLISHED[name]


def test_every_name_of_the_table_has_a_shape():
    shapes = [known_shape(name) for name in known_names()]
    assert len(shapes) > 30
    assert None not in shapes


def test_a_vision_model_counts_its_tower():
    text, seeing = known_shape("Qwen/Qwen2.5-3B"), known_shape("Qwen/Qwen2.5-VL-3B-Instruct")
    assert text is not None
    assert seeing is not None
    assert seeing.parameters - text.parameters == seeing.vision > 600e6
    assert seeing.layer == text.layer


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], ["down_proj"]])
def test_adapters_are_those_of_peft(targets: Any):
    from peft import LoraConfig, get_peft_model

    config = AutoConfig.for_model(**LLAMA)
    model = get_peft_model(model_class(config).from_config(config), LoraConfig(r=3, target_modules=targets))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    names = None if targets == "all-linear" else frozenset(targets)
    assert shape_of_config(LLAMA, "m").adapter_parameters(3, names) == trained


def test_unknown_targets_count_all_matrices():
    shape = shape_of_config(LLAMA, "m")
    assert shape.adapter_parameters(2, frozenset({"c_attn"})) == shape.adapter_parameters(2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LLAMA | {"num_local_experts": 8}, "mixture of experts"),
        (LLAMA | {"model_type": "mamba"}, "of the family 'mamba'.*known families: qwen2"),
        ({"model_type": "llama", "hidden_size": 8}, "has no 'num_attention_heads'"),
    ],
)
def test_what_cannot_be_planned_is_refused(config: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        shape_of_config(config, "the-model")
