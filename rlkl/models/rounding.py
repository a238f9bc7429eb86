"""The rounding of a model: how far apart two programs may be that compute the same log-probs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rlkl.models.sharding import decoder_layers


@contextmanager
def rounded_otherwise(model: nn.Module, config: Any, *, seed: int = 0) -> Iterator[None]:
    """Change each number between two decoder layers by up to one rounding while the block runs.

    The changes are random, uniform in ±eps/2 relative to the number, with eps of the precision. That is as much as two
    kernels for the same layer differ by. Does nothing to a model whose layers are in no list. ``config`` is the
    model's, of transformers.
    """
    generator = torch.Generator().manual_seed(seed)

    def change(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (moved(output[0]), *output[1:])
        return moved(output)

    def moved(states: Tensor) -> Tensor:
        half = torch.finfo(states.dtype).eps / 2
        noise = torch.rand(states.shape, generator=generator, dtype=torch.float64) * 2 - 1
        return (states.double() * (1 + half * noise.to(states.device))).to(states.dtype)

    hooks = [layer.register_forward_hook(change) for layer in decoder_layers(model, config)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
