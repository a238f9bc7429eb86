"""Models for tests, made in a second: random weights, the character tokenizer of the built-in worlds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlkl.system.compat import ensure_torch_extras
from rlkl.tasks.characters import CHARACTER_VOCABULARY, character_tokenizer, small_qwen3_config
from rlkl.tasks.shapes import small_qwen2_5_vl_config

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
"""What stands for one image in a prompt of `tiny_qwen2_5_vl`; its processor repeats the middle token."""


def tiny_qwen3(folder: Path, *, tied: bool, seed: int, vocabulary: int = CHARACTER_VOCABULARY) -> Path:
    """Write an untrained Qwen3 of about 160,000 float32 parameters and its tokenizer to ``folder``, and return it."""
    ensure_torch_extras()
    import torch
    from transformers import Qwen3ForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(small_qwen3_config(tied=tied, vocabulary=vocabulary))
    model.save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


def deep_qwen3(folder: Path, *, width: int = 128, initializer_range: float = 0.08, seed: int = 0) -> Path:
    """Write an untrained Qwen3 of 24 layers, 4 million parameters at width 128, and its tokenizer; return ``folder``.

    Rounding adds up over its layers as in a real model.
    """
    ensure_torch_extras()
    import torch
    from transformers import Qwen3ForCausalLM

    config = small_qwen3_config(tied=False)
    config.update(
        {
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 24,
            "layer_types": ["full_attention"] * 24,
            "max_window_layers": 24,
            "initializer_range": initializer_range,
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    model.save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


def tiny_qwen2_5_vl(folder: Path, *, seed: int) -> Path:
    """Write an untrained Qwen2.5-VL of about 350,000 float32 parameters and its processor, and return ``folder``.

    An image of 56 x 56 pixels, the smallest that is not enlarged, takes four tokens.
    """
    ensure_torch_extras()
    import torch
    from transformers import (
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = character_tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"]}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(small_qwen2_5_vl_config(tokenizer, initializer_range=0.2))
    model.save_pretrained(folder)
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(), tokenizer=tokenizer, video_processor=Qwen2VLVideoProcessor()
    )
    processor.save_pretrained(folder)
    return folder


def random_model(architecture: str, folder: Path, *, seed: int, **settings: Any) -> Path:
    """Write a causal language model of two layers, width 64, with random norms and biases, and its tokenizer.

    ``architecture`` is a ``model_type`` of transformers, ``settings`` go into its configuration. Windows of attention
    are 16 tokens wide.
    """
    ensure_torch_extras()
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    own = _OWN_SETTINGS.get(architecture, {})
    config = AutoConfig.for_model(architecture, **{**_SETTINGS, **own, **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1 if parameter.ndim == 1 else 0.0)
    model.save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


_SETTINGS: dict[str, Any] = {
    "vocab_size": CHARACTER_VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}

_OWN_SETTINGS: dict[str, dict[str, Any]] = {
    "cohere": {"logit_scale": 0.5},
    "gemma2": {"sliding_window": 16, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 3.0},
    "gemma3_text": {"sliding_window": 16},
    "granite": {"logits_scaling": 2.0, "residual_multiplier": 0.5},
    "gpt2": {"head_dim": None},
    "mistral": {"sliding_window": 16},
    "opt": {"word_embed_proj_dim": 64, "ffn_dim": 128, "init_std": 0.15, "head_dim": None},
    "phi3": {"sliding_window": 16},
    "qwen2": {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True},
}
