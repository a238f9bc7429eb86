"""Heads on the frozen reference that weigh each token of a preference; the rule is `SparsePo`.

Shapes: B sequences, T tokens, L layers, H hidden size, K = 2 masks (of the log-ratio, of the KL), N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlkl.seeds import derive_seed
from rlkl.updates.base import HeadInput, Heads, ModelShape
from rlkl.updates.settings import SparsePoSettings

PAPER_STD = 0.02
"""Standard deviation of the matrices' first values in the authors' code."""
DEAD_FRACTION = 0.95
"""A head that is zero at more of the first batch's tokens is re-initialised."""
MOST_DRAWS = 20
"""After so many draws a head stays as it is; ``mask/dead_pairs`` shows it."""


class MaskHead(nn.Module):
    """One mask: ReLU(sum_l o_l ReLU(w_l . LayerNorm(h_l) + b_l)), with one LayerNorm for all layers."""

    def __init__(self, layers: int, hidden_size: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, eps=eps)
        self.weight_LH = nn.Parameter(torch.zeros(layers, hidden_size))
        self.bias_L = nn.Parameter(torch.ones(layers))
        self.mixer_1L = nn.Parameter(torch.full((1, layers), 1 / layers))

    def draw(self, seed: int) -> None:
        """Draw the authors' start: normal matrices, zero biases. About half of all tokens then have mask 0."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for matrix in (self.weight_LH, self.mixer_1L):
                matrix.copy_(torch.randn(matrix.shape, generator=generator) * PAPER_STD)
            self.bias_L.zero_()

    def forward(self, layers_BTLH: Tensor) -> Tensor:
        """Return the masks ``[B, T]``, never negative."""
        gate_BTL = F.relu(torch.einsum("...lh,lh->...l", self.norm(layers_BTLH), self.weight_LH) + self.bias_L)
        return F.relu((gate_BTL * self.mixer_1L).sum(dim=-1))


class MaskHeads(Heads):
    """A head for each mask, or one for both. ``init`` "ones": every mask is exactly 1 before the first step."""

    reads = HeadInput.REFERENCE_LAYERS

    def __init__(self, model: ModelShape, settings: SparsePoSettings) -> None:
        super().__init__()
        self.weight_decay = settings.mask_weight_decay
        self.seed = model.seed
        self.draws = 0
        count = 1 if settings.mask == "sparse_common" else 2
        self.masks = nn.ModuleList(MaskHead(model.layers, model.hidden_size) for _ in range(count))
        if settings.mask_init == "paper":
            self._draw(range(count))

    def forward(self, x: Tensor) -> Tensor:
        masks = [mask(x.float()) for mask in self.masks]
        return torch.stack([masks[0], masks[-1]], dim=-1)

    def redraw(self, heads_NK: Tensor) -> bool:
        """Re-initialise heads that switch off nearly everything: a dead ReLU would never learn."""
        dead = [k for k in range(len(self.masks)) if (heads_NK[:, k] == 0).float().mean() > DEAD_FRACTION]
        if not dead or self.draws >= MOST_DRAWS:
            return False
        self._draw(dead)
        return True

    def _draw(self, numbers: Sequence[int]) -> None:
        self.draws += 1
        for k in numbers:
            mask = self.masks[k]
            assert isinstance(mask, MaskHead)
            mask.draw(derive_seed(self.seed, "mask heads", k, self.draws))


class LayerMeans(Heads):
    """MaPO's input, nothing to train: the mean of each layer's hidden state, ``[B, T, L]``."""

    reads = HeadInput.REFERENCE_LAYERS

    def forward(self, x: Tensor) -> Tensor:
        return x.float().mean(dim=-1)
