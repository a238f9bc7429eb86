"""Models for tests, made in a second: random weights, the character tokenizer of the built-in worlds."""

from __future__ import annotations

from pathlib import Path

from rlkl.compat import ensure_torch_extras
from rlkl.tasks.characters import character_tokenizer, small_qwen3_config
from rlkl.tasks.shapes import small_qwen2_5_vl_config

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
"""What stands for one image in a prompt of `tiny_qwen2_5_vl`; its processor repeats the middle token."""


def tiny_qwen3(folder: Path, *, tied: bool, seed: int) -> Path:
    """Write an untrained Qwen3 of about 160,000 float32 parameters and its tokenizer to ``folder``, and return it."""
    ensure_torch_extras()
    import torch
    from transformers import Qwen3ForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(small_qwen3_config(tied=tied))
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
