"""The shape of a language model, read from its config.json, and the number of its parameters.

Symbols, as in `rlkl.costs.memory`: V vocabulary, H hidden size, L layers, A attention heads, K key-value heads, D size
of a head, I intermediate size of the MLP, P all parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rlkl.costs.eight_bit import BLOCK
from rlkl.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a dense decoder, with its vision tower if it has one."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    mlp_matrices: int = 3
    """3: gate, up and down (SwiGLU); 2: up and down (GELU)."""
    is_tied: bool
    """Embeddings and head share one matrix."""
    layer_vectors: int = 0
    """Parameters of norms and biases in one layer."""
    root_vectors: int = 0
    """Further parameters outside the layers: final norm, learned positions, bias of the head."""
    vision: int = 0
    """Parameters of the vision tower and its projector."""
    kept: int = 0
    """Further numbers that one layer keeps of a token for the backward pass, without gradient checkpointing; measured.

    Norms of queries and keys keep 3(A+K)D (Qwen3), a GELU that is written out 2I (GPT-2, GPT-J).
    """

    @property
    def layer(self) -> int:
        """Parameters of one decoder layer: H(A+2K)D + A·D·H + 3·H·I, and norms and biases."""
        attention = self.hidden * (self.heads + 2 * self.kv_heads) * self.head_size
        output = self.heads * self.head_size * self.hidden
        return attention + output + self.mlp_matrices * self.hidden * self.intermediate + self.layer_vectors

    @property
    def root(self) -> int:
        """Parameters outside the layers: V·H once if tied, else twice, and the vision tower."""
        matrices = 1 if self.is_tied else 2
        return self.vocabulary * self.hidden * matrices + self.root_vectors + self.vision

    @property
    def parameters(self) -> int:
        """All parameters P."""
        return self.layers * self.layer + self.root

    @property
    def in_8_bit(self) -> int:
        """Parameters whose moments have 8 bits under ``learner.optimizer: adamw_8bit``: matrices of whole blocks."""
        query, key = self.heads * self.head_size, self.kv_heads * self.head_size
        rows = (
            (self.hidden, query + 2 * key),
            (query, self.hidden),
            (self.hidden, (self.mlp_matrices - 1) * self.intermediate),
            (self.intermediate, self.hidden),
        )
        layer = sum(length * count for length, count in rows if length % BLOCK == 0)
        head = 0 if self.is_tied or self.hidden % BLOCK else self.vocabulary * self.hidden
        return self.layers * layer + head

    @property
    def cache_values(self) -> int:
        """Numbers that the key-value cache keeps of one token: 2·L·K·D."""
        return 2 * self.layers * self.kv_heads * self.head_size

    def adapter_parameters(self, rank: int, targets: frozenset[str] | None = None) -> int:
        """Return the parameters of LoRA adapters: rank x (inputs + outputs) for each adapted matrix.

        ``targets``: names of the adapted matrices, as in ``model.lora.target_modules``; None: all. If a name is not one
        of a Llama or Qwen layer, all matrices count, which is an upper bound.
        """
        query, key, inner, hidden = (
            self.heads * self.head_size,
            self.kv_heads * self.head_size,
            self.intermediate,
            self.hidden,
        )
        ends = {
            "q_proj": hidden + query,
            "k_proj": hidden + key,
            "v_proj": hidden + key,
            "o_proj": query + hidden,
            "gate_proj": hidden + inner if self.mlp_matrices == 3 else 0,
            "up_proj": hidden + inner,
            "down_proj": inner + hidden,
        }
        chosen = ends.keys() if targets is None or targets - ends.keys() else targets
        return rank * self.layers * sum(ends[name] for name in chosen)


def shape_of_config(config: Mapping[str, Any], name: str) -> ModelShape:
    """Read the shape from the values of a config.json; ``name`` is the model in messages.

    Raises:
        InputError: the model is a mixture of experts, of a family that is not known here, or a size is missing.
    """
    text = config.get("text_config") or config
    family = str(text.get("model_type") or config.get("model_type")).removesuffix("_text")
    if any(text.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise InputError(f"{name} is a mixture of experts, whose costs rlkl cannot plan; choose a dense model")
    if family not in _FAMILIES:
        raise InputError(
            f"{name} is of the family {family!r}, whose costs rlkl cannot plan; known families: {', '.join(_FAMILIES)}"
        )
    try:
        shape = _FAMILIES[family](text)
    except KeyError as error:
        raise InputError(
            f"the config.json of {name} has no {error.args[0]!r}, so its costs cannot be planned"
        ) from None
    # Qwen2.5-VL writes whether embeddings are tied beside the sizes of its text model, not among them.
    is_tied = config.get("tie_word_embeddings", shape.is_tied)
    vision = config.get("vision_config")
    extra = 0 if vision is None else _vision_tower(vision, shape.hidden)
    return replace(shape, is_tied=bool(is_tied), vision=extra)


def _llama(config: Mapping[str, Any]) -> ModelShape:
    """Read a Llama, Mistral, Qwen2 or Qwen3: RMS norms, SwiGLU, biases and query and key norms by family."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    size, inner = config.get("head_dim") or hidden // heads, config["intermediate_size"]
    family = config.get("model_type", "llama").removesuffix("_text")
    vectors = 2 * hidden
    if family in ("qwen2", "qwen2_5_vl"):
        vectors += (
            heads + 2 * kv_heads
        ) * size  # the query, key and value projections have a bias, the output has none
    elif config.get("attention_bias"):
        vectors += (heads + 2 * kv_heads) * size + hidden
    if family == "qwen3":
        vectors += 2 * size
    if config.get("mlp_bias"):
        vectors += 2 * inner + hidden
    return ModelShape(
        vocabulary=config["vocab_size"],
        hidden=hidden,
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=kv_heads,
        head_size=size,
        intermediate=inner,
        is_tied=bool(config.get("tie_word_embeddings", False)),
        layer_vectors=vectors,
        root_vectors=hidden,
        kept=3 * (heads + kv_heads) * size if family == "qwen3" else 0,
    )


def _gpt2(config: Mapping[str, Any]) -> ModelShape:
    """Read a GPT-2: biases and layer norms everywhere, learned positions, tied embeddings."""
    hidden, inner = config["n_embd"], config.get("n_inner") or 4 * config["n_embd"]
    return ModelShape(
        vocabulary=config["vocab_size"],
        hidden=hidden,
        layers=config["n_layer"],
        heads=config["n_head"],
        kv_heads=config["n_head"],
        head_size=hidden // config["n_head"],
        intermediate=inner,
        mlp_matrices=2,
        is_tied=bool(config.get("tie_word_embeddings", True)),
        layer_vectors=4 * hidden + 4 * hidden + inner + hidden,
        root_vectors=config["n_positions"] * hidden + 2 * hidden,
        kept=2 * inner,
    )


def _gptj(config: Mapping[str, Any]) -> ModelShape:
    """Read a GPT-J: one layer norm a layer, biases in the MLP and in the head only."""
    hidden, inner = config["n_embd"], config.get("n_inner") or 4 * config["n_embd"]
    return ModelShape(
        vocabulary=config["vocab_size"],
        hidden=hidden,
        layers=config["n_layer"],
        heads=config["n_head"],
        kv_heads=config["n_head"],
        head_size=hidden // config["n_head"],
        intermediate=inner,
        mlp_matrices=2,
        is_tied=bool(config.get("tie_word_embeddings", False)),
        layer_vectors=2 * hidden + inner + hidden,
        root_vectors=2 * hidden + config["vocab_size"],
        kept=2 * inner,
    )


def _gpt_neox(config: Mapping[str, Any]) -> ModelShape:
    """Read a GPT-NeoX or Pythia: biases and two layer norms in each layer."""
    hidden, heads, inner = config["hidden_size"], config["num_attention_heads"], config["intermediate_size"]
    return ModelShape(
        vocabulary=config["vocab_size"],
        hidden=hidden,
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=heads,
        head_size=hidden // heads,
        intermediate=inner,
        mlp_matrices=2,
        is_tied=bool(config.get("tie_word_embeddings", False)),
        layer_vectors=4 * hidden + 4 * hidden + inner + hidden,
        root_vectors=2 * hidden,
    )


_FAMILIES = {
    "qwen2": _llama,
    "qwen2_5_vl": _llama,
    "qwen3": _llama,
    "llama": _llama,
    "mistral": _llama,
    "gpt2": _gpt2,
    "gptj": _gptj,
    "gpt_neox": _gpt_neox,
}
"""Reader of a config.json by ``model_type``."""


def _vision_tower(config: Mapping[str, Any], hidden: int) -> int:
    """Count the vision tower and projector of a Qwen2.5-VL; ``hidden`` is that of the language model."""
    own, inner = config["hidden_size"], config["intermediate_size"]
    patch = config.get("in_channels", 3) * config.get("temporal_patch_size", 2) * config.get("patch_size", 14) ** 2
    attention = 4 * own * own + 4 * own
    mlp = 3 * own * inner + 2 * inner + own
    merged = own * config.get("spatial_merge_size", 2) ** 2
    projector = own + merged * merged + merged + merged * hidden + hidden
    return patch * own + config["depth"] * (attention + mlp + 2 * own) + projector
