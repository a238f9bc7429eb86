"""Shapes of the models that recipes here name, for machines that do not have their config.json.

Source of each row: the config.json in the model's repository on the Hugging Face hub. A test compares the parameters
that follow from a row with those of the model that transformers builds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlkl.costs.shapes import ModelShape, shape_of_config

_QWEN_VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420}

# Family, then: vocabulary, hidden size, layers, heads, key-value heads, head size, intermediate size, tied.
_ROWS: Mapping[str, tuple[str, int, int, int, int, int, int, int, bool]] = {
    "Qwen/Qwen2.5-0.5B": ("qwen2", 151_936, 896, 24, 14, 2, 64, 4_864, True),
    "Qwen/Qwen2.5-1.5B": ("qwen2", 151_936, 1_536, 28, 12, 2, 128, 8_960, True),
    "Qwen/Qwen2.5-3B": ("qwen2", 151_936, 2_048, 36, 16, 2, 128, 11_008, True),
    "Qwen/Qwen2.5-7B": ("qwen2", 152_064, 3_584, 28, 28, 4, 128, 18_944, False),
    "Qwen/Qwen2.5-14B": ("qwen2", 152_064, 5_120, 48, 40, 8, 128, 13_824, False),
    "Qwen/Qwen2.5-32B": ("qwen2", 152_064, 5_120, 64, 40, 8, 128, 27_648, False),
    "Qwen/Qwen2.5-72B": ("qwen2", 152_064, 8_192, 80, 64, 8, 128, 29_568, False),
    "Qwen/Qwen2.5-VL-3B": ("qwen2_5_vl", 151_936, 2_048, 36, 16, 2, 128, 11_008, True),
    "Qwen/Qwen2.5-VL-7B": ("qwen2_5_vl", 152_064, 3_584, 28, 28, 4, 128, 18_944, False),
    "Qwen/Qwen3-0.6B": ("qwen3", 151_936, 1_024, 28, 16, 8, 128, 3_072, True),
    "Qwen/Qwen3-1.7B": ("qwen3", 151_936, 2_048, 28, 16, 8, 128, 6_144, True),
    "Qwen/Qwen3-4B": ("qwen3", 151_936, 2_560, 36, 32, 8, 128, 9_728, True),
    "Qwen/Qwen3-8B": ("qwen3", 151_936, 4_096, 36, 32, 8, 128, 12_288, False),
    "meta-llama/Llama-3.2-1B": ("llama", 128_256, 2_048, 16, 32, 8, 64, 8_192, True),
    "meta-llama/Llama-3.2-3B": ("llama", 128_256, 3_072, 28, 24, 8, 128, 8_192, True),
    "meta-llama/Llama-3.1-8B": ("llama", 128_256, 4_096, 32, 32, 8, 128, 14_336, False),
    "meta-llama/Llama-3.1-70B": ("llama", 128_256, 8_192, 80, 64, 8, 128, 28_672, False),
    "huggyllama/llama-7b": ("llama", 32_000, 4_096, 32, 32, 32, 128, 11_008, False),
    "openai-community/gpt2": ("gpt2", 50_257, 768, 12, 12, 12, 64, 3_072, True),
    "openai-community/gpt2-medium": ("gpt2", 50_257, 1_024, 24, 16, 16, 64, 4_096, True),
    "openai-community/gpt2-large": ("gpt2", 50_257, 1_280, 36, 20, 20, 64, 5_120, True),
    "openai-community/gpt2-xl": ("gpt2", 50_257, 1_600, 48, 25, 25, 64, 6_400, True),
    "EleutherAI/gpt-j-6b": ("gptj", 50_400, 4_096, 28, 16, 16, 256, 16_384, False),
    "EleutherAI/pythia-1.4b": ("gpt_neox", 50_304, 2_048, 24, 16, 16, 128, 8_192, False),
}

_SAME = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "insub/gpt2-large-imdb-fine-tuned": "openai-community/gpt2-large",
    "EleutherAI/pythia-1.4b-deduped": "EleutherAI/pythia-1.4b",
    "CarperAI/openai_summarize_tldr_sft": "EleutherAI/gpt-j-6b",
    "meta-llama/Meta-Llama-3-8B": "meta-llama/Llama-3.1-8B",
    "meta-llama/Meta-Llama-3-70B": "meta-llama/Llama-3.1-70B",
}
"""Models of another name and the same shape."""


def known_shape(name: str) -> ModelShape | None:
    """Return a model's shape by its name on the hub, with or without ``-Instruct`` or ``-Base``; None if unknown."""
    for known in (name, name.removesuffix("-Instruct"), name.removesuffix("-Base")):
        row = _ROWS.get(_SAME.get(known, known))
        if row is not None:
            return shape_of_config(_config(row), name)
    return None


def known_names() -> Iterator[str]:
    """Yield the names of all models of the table."""
    yield from _ROWS
    yield from _SAME


def _config(row: tuple[str, int, int, int, int, int, int, int, bool]) -> dict[str, Any]:
    """Return the values that a config.json of this row has."""
    family, vocabulary, hidden, layers, heads, kv_heads, head_size, intermediate, tied = row
    values: dict[str, Any] = {"model_type": family, "vocab_size": vocabulary, "tie_word_embeddings": tied}
    if family in ("gpt2", "gptj"):
        return values | {"n_embd": hidden, "n_layer": layers, "n_head": heads, "n_positions": 1024}
    values |= {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_size,
        "intermediate_size": intermediate,
    }
    return values | ({"vision_config": _QWEN_VISION} if family == "qwen2_5_vl" else {})
