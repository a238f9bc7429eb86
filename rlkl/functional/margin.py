"""The threshold margin of hidden states (GeRe, arXiv 2508.04676).

Each dimension of a hidden state has one of three classes: low (at most mean - standard deviation), high (at least mean
+ standard deviation), or middle. A state that stays in the class that it had before training costs nothing.

Shapes: N tokens, H dimensions of the hidden state. A class is a number of 2 bits, so P = ceil(H / 4) bytes hold those
of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOW, MIDDLE, HIGH = 0, 1, 2
"""The classes."""

_PER_BYTE = 4


def classes_of(hidden_NH: Tensor, low_H: Tensor, high_H: Tensor) -> Tensor:
    """Return the class of each number: ``[N, H]`` uint8."""
    classes_NH = torch.full(hidden_NH.shape, MIDDLE, dtype=torch.uint8, device=hidden_NH.device)
    classes_NH[hidden_NH <= low_H] = LOW
    classes_NH[hidden_NH >= high_H] = HIGH
    return classes_NH


def packed_classes(classes_NH: Tensor) -> Tensor:
    """Pack four classes into a byte: ``[N, P]`` uint8. The last byte may hold fewer."""
    padded = torch.nn.functional.pad(classes_NH, (0, -classes_NH.shape[1] % _PER_BYTE))
    quads = padded.view(padded.shape[0], -1, _PER_BYTE)
    return quads[..., 0] | quads[..., 1] << 2 | quads[..., 2] << 4 | quads[..., 3] << 6


def unpacked_classes(packed_NP: Tensor, size: int) -> Tensor:
    """Return the ``[N, size]`` classes that `packed_classes` packed."""
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=packed_NP.device)
    return (packed_NP.unsqueeze(-1) >> shifts & 3).flatten(1)[:, :size]


def margin_excess(
    hidden_NH: Tensor, classes_NH: Tensor, low_H: Tensor, high_H: Tensor, slack_H: Tensor | float = 0.0
) -> Tensor:
    """Return how far each number is outside the band of its class: ``[N, H]`` float32, 0 inside.

    A low number may not rise above ``low_H``, a high one not fall below ``high_H``, a middle one leave neither side.
    ``slack_H`` is not counted: so far a number may be outside because of rounding. The gradient is 0 inside the band.
    """
    hidden_NH = hidden_NH.float()
    above_low_NH, below_low_NH = hidden_NH - low_H, low_H - hidden_NH
    above_high_NH, below_high_NH = hidden_NH - high_H, high_H - hidden_NH
    middle_NH = torch.maximum(above_high_NH, below_low_NH)
    outside_NH = torch.where(classes_NH == LOW, above_low_NH, torch.where(classes_NH == HIGH, below_high_NH, middle_NH))
    return (outside_NH - slack_H).relu()
