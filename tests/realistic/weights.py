"""Random weights that behave as trained ones do: logits of a trained model's size, and an end that comes at last.

Shapes: N places, H hidden size, V vocabulary.

Coordinate 0 of the hidden state is kept constant: every token brings the same value, and no block writes to it. The
rows of the stop tokens in the output head read this coordinate alone, so their probability is about constant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_CONSTANT = 0.12
"""Coordinate 0 of every hidden state: so small that it is little of what the blocks read."""
_EMBEDDING = 0.02
_BIAS = 0.05
_WRITERS = {
    "self_attn.o_proj.weight": 0.04,
    "self_attn.out_proj.weight": 0.04,
    "attn.c_proj.weight": 0.04,
    "mlp.down_proj.weight": 0.15,
    "experts.down_proj": 0.15,
    "fc2.weight": 0.15,
    "mlp.c_proj.weight": 0.15,
}
"""End of the name of a weight whose output is added to the hidden state -> its size.

With these sizes the last hidden state depends on the last token and on the ones before it, states of different places
differ, and a small error grows about fivefold through 24 layers. Larger attention makes all places alike.
"""
_WRITER_BIASES = ("out_proj.bias", "fc2.bias", "c_proj.bias")
_AFTER_BLOCKS = ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")
"""Norms that Gemma 2 and 3 put behind a block; coordinate 0 does not pass them."""
_ROUTER = 6.0
"""Size of a router's logits: large enough that rounding seldom changes which experts a token goes to."""
_OWN = 0.15
"""Share of an expert's weights that is its own. Experts that were grown from one dense model have the rest in common,
and so a token that rounding sends to another expert does not become another token."""
_STOP_ROW = 1.2
"""Coordinate 0 of the most frequent stop token's row."""


@torch.no_grad()
def draw_weights(model: Any, *, seed: int) -> None:
    """Draw all weights anew. Every matrix keeps the size of its input, so each block adds something that counts."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        fan_in = parameter.shape[0] if "gpt2" in model.config.model_type else parameter.shape[-1]
        if "embed" in name or "wte" in name or "wpe" in name or name.endswith("lm_head.weight"):
            scale = _EMBEDDING / _embedding_scale(model)
        elif parameter.ndim == 1:
            scale = _BIAS / 10 if name.endswith(_WRITER_BIASES) else _BIAS
        else:
            scale = 1 / math.sqrt(math.prod(parameter.shape[1:]) if "patch_embed" in name else fan_in)
        if name.endswith("mlp.gate.weight"):
            scale *= _ROUTER
        scale *= next((size for end, size in _WRITERS.items() if name.endswith(end)), 1.0)
        noise = torch.randn(parameter.shape, generator=generator) * scale
        if ".experts." in name:
            noise = _OWN * noise + (1 - _OWN**2) ** 0.5 * noise[:1]
        is_scale = parameter.ndim == 1 and name.endswith("weight") and not _counts_from_one(model)
        parameter.copy_(noise + 1 if is_scale else noise)
    for name, parameter in model.named_parameters():
        if "visual" not in name and not name.startswith("vision"):
            transposed = model.config.model_type == "gpt2"
            _free_constant(name, parameter, transposed=transposed)
            if model.config.model_type.startswith(("gemma2", "gemma3")) and name.endswith(_AFTER_BLOCKS):
                parameter[0] = -1.0
            if name.endswith(
                ("fc2.weight", "mlp.c_proj.weight")
            ):  # their inputs have a mean, which would drown the rest
                parameter -= parameter.mean(0 if transposed else 1, keepdim=True)
    _set_constant(model)


def _counts_from_one(model: Any) -> bool:
    """Gemma's norms multiply by one plus their weight."""
    return model.config.model_type.startswith("gemma")


def _free_constant(name: str, parameter: Tensor, *, transposed: bool) -> None:
    """No block writes to coordinate 0."""
    if name.endswith(tuple(_WRITERS)):
        (parameter[:, 0] if transposed else parameter[..., 0, :]).zero_()
    elif name.endswith(_WRITER_BIASES):
        parameter[0] = 0.0


def _set_constant(model: Any) -> None:
    """Every token brings the constant; where positions are embedded, they do."""
    positions = [p for name, p in model.named_parameters() if name.endswith(("wpe.weight", "embed_positions.weight"))]
    tokens = model.get_input_embeddings().weight
    if positions:
        positions[0][:, 0] = _CONSTANT
        tokens[:, 0] = 0.0
    else:
        tokens[:, 0] = _CONSTANT / _embedding_scale(model)
    head = model.get_output_embeddings().weight
    if head is not tokens:
        head[:, 0] = 0.0


def _embedding_scale(model: Any) -> float:
    return math.sqrt(model.config.hidden_size) if _counts_from_one(model) else 1.0


@torch.no_grad()
def shape_logits(model: Any, *, entropy: float, stops: Mapping[int, float], ids_BT: Tensor) -> None:
    """Scale the final norm and set the rows of the stop tokens, so that logits look real over ``ids_BT``.

    ``entropy``: wanted mean entropy in nats. ``stops``: token id -> wanted mean probability.
    """
    body, head = model.base_model, model.get_output_embeddings().weight
    norm = final_norm(model)
    hidden_NH = body(input_ids=ids_BT, use_cache=False).last_hidden_state[:, 1:].flatten(0, 1)
    others_NV = hidden_NH[:, 1:] @ head[:, 1:].T
    others_NV[:, list(stops)] = -torch.inf
    scale = _scale_for(others_NV, entropy)
    _multiply(norm, slice(1, None), scale, model)
    constant_N = hidden_NH[:, 0] / hidden_NH[:, 0].mean()
    together = _stop_logit((others_NV * scale).logsumexp(-1), constant_N, sum(stops.values()))
    wanted = {token: together + math.log(p / sum(stops.values())) for token, p in stops.items()}
    shared = float(head[:, 0].mean())  # all tokens share it, so it changes no probability
    reading = max(wanted.values()) / (_STOP_ROW - shared) / float(hidden_NH[:, 0].mean())
    _multiply(norm, slice(0, 1), reading, model)
    for token, logit in wanted.items():
        head[token] = head[token] * 0.05
        head[token, 0] = shared + logit / reading / float(hidden_NH[:, 0].mean())


def _stop_logit(total_N: Tensor, constant_N: Tensor, probability: float) -> float:
    """The logit that has this mean probability against all others (log-sum-exp ``total_N``), by bisection."""
    low, high = 0.0, 100.0
    for _ in range(30):
        middle = (low + high) / 2
        found = float(torch.sigmoid(middle * constant_N - total_N).mean())
        low, high = (low, middle) if found > probability else (middle, high)
    return (low + high) / 2


def final_norm(model: Any) -> nn.Module:
    """The norm before the output head: the last one outside the blocks."""
    names = ("norm", "final_layer_norm", "ln_f")
    found = [
        module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in names and "layers" not in name and "visual" not in name
    ]
    assert len(found) == 1, found
    return found[0]


def _multiply(norm: nn.Module, where: slice, factor: float, model: Any) -> None:
    weight: Any = norm.weight
    offset = 1.0 if _counts_from_one(model) else 0.0
    weight[where] = (weight[where] + offset) * factor - offset
    if getattr(norm, "bias", None) is not None:
        bias: Any = norm.bias
        bias[where] = bias[where] * factor


def _scale_for(logits_NV: Tensor, entropy: float) -> float:
    """The factor that gives the logits this mean entropy, by bisection."""
    low, high = 1e-1, 1e4
    for _ in range(24):
        middle = math.sqrt(low * high)
        logprobs_NV = (logits_NV * middle).log_softmax(-1)
        found = float(-torch.nan_to_num(logprobs_NV.exp() * logprobs_NV).sum(-1).mean())
        low, high = (middle, high) if found > entropy else (low, middle)
    return math.sqrt(low * high)
