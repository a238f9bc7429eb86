"""Models for tests, made in a second: random weights, the character tokenizer of the built-in worlds."""

from __future__ import annotations

from pathlib import Path

from rlkl.compat import ensure_torch_extras
from rlkl.tasks.characters import character_tokenizer, small_qwen3_config


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
