"""Models for tests, made in a second: random weights, the character tokenizer of the built-in worlds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rlkl.compat import ensure_torch_extras
from rlkl.tasks.characters import EOS_ID, MAX_POSITIONS, PAD_ID, character_tokenizer, small_qwen3_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig

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
        model = Qwen2_5_VLForConditionalGeneration(_tiny_qwen2_5_vl_config(tokenizer))
    model.save_pretrained(folder)
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(), tokenizer=tokenizer, video_processor=Qwen2VLVideoProcessor()
    )
    processor.save_pretrained(folder)
    return folder


def _tiny_qwen2_5_vl_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    from transformers import Qwen2_5_VLConfig

    width, ids = 64, tokenizer.get_vocab()
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": MAX_POSITIONS,
            "initializer_range": 0.2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": None,
            "eos_token_id": EOS_ID,
            "pad_token_id": PAD_ID,
        },
        vision_config={
            "depth": 2,
            "hidden_size": width,
            "intermediate_size": 128,
            "num_heads": 2,
            "out_hidden_size": width,
            "fullatt_block_indexes": [1],
            "initializer_range": 0.2,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        dtype="float32",
    )
