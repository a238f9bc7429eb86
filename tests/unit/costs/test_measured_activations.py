"""The formula of activations against the tensors that torch really keeps for the backward pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from rlkl.costs.memory import Training, activation_bytes
from rlkl.costs.shapes import shape_of_config

TOKENS = 256
SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 768,
    "head_dim": 32,
}
GPT2: dict[str, Any] = {"vocab_size": 100, "n_embd": 256, "n_head": 8, "n_positions": 512, "bos_token_id": None}
FAMILIES = ["llama", "qwen2", "qwen3", "gpt2", "gpt_neox"]


def config_of(family: str, layers: int) -> Any:
    if family == "gpt2":
        return AutoConfig.for_model(family, **GPT2, eos_token_id=None, n_layer=layers)
    return AutoConfig.for_model(family, **SIZES, num_hidden_layers=layers)


def kept_bytes(config: Any, dtype: torch.dtype, *, checkpointed: bool) -> float:
    """Run the model and add up the storages that autograd keeps, each once and without the weights; bytes per token."""
    model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids_BT = (torch.arange(TOKENS) % 100).reshape(2, -1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden_BTH = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
    assert hidden_BTH.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / TOKENS


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_keeps_what_the_formula_says(family: str, dtype: str, checkpointed: bool):
    precision = getattr(torch, dtype)
    measured = [kept_bytes(config_of(family, layers), precision, checkpointed=checkpointed) for layers in (1, 3)]
    shape = shape_of_config(config_of(family, 1).to_dict(), family)
    run = Training(is_bfloat16=dtype == "bfloat16", is_checkpointed=checkpointed, micro_batch=1)
    formula = [activation_bytes(replace(shape, layers=layers), run) for layers in (1, 3)]
    tolerance = 1e-9 if checkpointed else 0.1
    assert measured[1] - measured[0] == pytest.approx(formula[1] - formula[0], rel=tolerance)
