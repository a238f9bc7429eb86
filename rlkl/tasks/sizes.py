"""Larger models of a built-in world: teachers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Qwen3Config


def resized(config: Qwen3Config, *, hidden_size: int, layers: int) -> Qwen3Config:
    """Return the settings with another width and depth; the feed-forward layers are four times as wide.

    The width of an attention head stays. The standard deviation of the first weights falls with the width.
    """
    config.initializer_range *= config.hidden_size / hidden_size
    config.hidden_size, config.intermediate_size = hidden_size, 4 * hidden_size
    config.num_hidden_layers, config.layer_types = layers, ["full_attention"] * layers
    return config
