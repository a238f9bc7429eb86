"""Rows of tokens without their padding, and with what they share once.

A model computes each token by itself but in attention. So the tokens of a micro-batch are laid in one row ``[N]``
without padding, and the first tokens that the rows of a group share (their prompt) come once. Attention gets the rows
back (`Packing.attention`), and so does whoever reads hidden states (`Packing.padded`).

Shapes: B rows, T tokens of the longest, N packed tokens, M places of a layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


def shared_prefixes(token_ids_BT: Tensor, lengths_B: Tensor, group_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each row how many first tokens it shares with all rows of its group, and the group's first row.

    A row that is alone in its group shares nothing.
    """
    groups, inverse_B = group_B.unique(return_inverse=True)
    rows_B = torch.arange(len(group_B), device=group_B.device)
    first_G = torch.full((len(groups),), len(group_B), device=group_B.device).scatter_reduce(
        0, inverse_B, rows_B, "amin"
    )
    first_B = first_G[inverse_B]
    columns_T = torch.arange(token_ids_BT.shape[1], device=group_B.device)
    equal_BT = (token_ids_BT == token_ids_BT[first_B]) & (columns_T < lengths_B.unsqueeze(1))
    own_B = equal_BT.long().cumprod(dim=1).sum(dim=1)
    shared_G = torch.full((len(groups),), token_ids_BT.shape[1], device=group_B.device).scatter_reduce(
        0, inverse_B, own_B, "amin"
    )
    alone_G = torch.bincount(inverse_B, minlength=len(groups)) == 1
    return torch.where(alone_G, 0, shared_G)[inverse_B], first_B


@dataclass(frozen=True, slots=True)
class Layout:
    """The places of packed tokens when rows are arranged again.

    ``index_M``: the token at each place. ``back_N``: each token's own place. ``duplicates``: for each shared
    beginning its first packed token, its length, and the places of its copies.
    """

    index_M: Tensor
    back_N: Tensor
    duplicates: Sequence[tuple[int, int, Tensor]]

    def unpack(self, x_N: Tensor) -> Tensor:
        """Arrange packed tokens, ``[N, ...] -> [M, ...]``; places of padding repeat some token."""
        return _Unpack.apply(x_N, self)  # pyright: ignore[reportReturnType] - apply is not typed

    def repack(self, x_M: Tensor) -> Tensor:
        """Take each packed token from its own place, ``[M, ...] -> [N, ...]``."""
        return _Repack.apply(x_M, self)  # pyright: ignore[reportReturnType] - apply is not typed


class _Unpack(torch.autograd.Function):
    """`Layout.unpack`. A gradient of its own, because those of index operations are slow on a CPU."""

    @staticmethod
    def forward(ctx: Any, x_N: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return x_N.index_select(0, layout.index_M)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient_M,), layout = gradients, ctx.layout
        gradient_N = gradient_M.index_select(0, layout.back_N)
        for start, length, copies in layout.duplicates:
            copied = gradient_M.index_select(0, copies)
            gradient_N[start : start + length] += copied.view(-1, length, *copied.shape[1:]).sum(dim=0)
        return gradient_N, None


class _Repack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_M: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return x_M.index_select(0, layout.back_N)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient_N,), layout = gradients, ctx.layout
        gradient_M = gradient_N.new_zeros(len(layout.index_M), *gradient_N.shape[1:])
        gradient_M[layout.back_N] = gradient_N
        return gradient_M, None


class Packing:
    """The packed tokens of some rows, and the layouts in which others need them."""

    def __init__(self, lengths_B: Tensor, length: int, shared: tuple[Tensor, Tensor] | None = None) -> None:
        """Pack rows of ``lengths_B`` tokens, right-padded to ``length``; ``shared`` is of `shared_prefixes`."""
        device = lengths_B.device
        self.shape = (len(lengths_B), length)
        prefix_B, first_B = shared or (torch.zeros_like(lengths_B), torch.arange(len(lengths_B), device=device))
        columns_T = torch.arange(length, device=device)
        is_first_B1 = (first_B == torch.arange(len(lengths_B), device=device)).unsqueeze(1)
        real_BT = columns_T < lengths_B.unsqueeze(1)
        own_BT = real_BT & ((columns_T >= prefix_B.unsqueeze(1)) | is_first_B1)
        count_BT = (own_BT.flatten().cumsum(0) - 1).view(self.shape)
        self.lengths_B = lengths_B
        self.source_N = own_BT.flatten().nonzero()[:, 0]
        """The place of each packed token in the rows, ``row * T + column``."""
        self.positions_N = self.source_N % length
        """The column of each packed token, which is its position in the sequence."""
        self._place_BT = torch.where(own_BT, count_BT, torch.where(real_BT, count_BT[first_B], 0))
        self._prefixes = self._groups(prefix_B, first_B, count_BT)

    @staticmethod
    def _groups(prefix_B: Tensor, first_B: Tensor, count_BT: Tensor) -> list[tuple[int, int, list[int]]]:
        """Return for each shared beginning: its first packed token, its length, the rows that have copies of it."""
        copies: dict[int, list[int]] = {}
        for row, first in enumerate(first_B.tolist()):
            if first != row:
                copies.setdefault(first, []).append(row)
        found = ((int(count_BT[first, 0]), int(prefix_B[first]), rows) for first, rows in copies.items())
        return [(start, length, rows) for start, length, rows in found if length > 0]

    @property
    def count(self) -> int:
        """The number of packed tokens, N."""
        return len(self.source_N)

    @cached_property
    def padded(self) -> Layout:
        """All rows, each T places: ``unpack`` gives ``[B * T, ...]``."""
        return self._layout([torch.arange(self.shape[0], device=self.source_N.device)], [self.shape[1]])

    @cached_property
    def ragged(self) -> Layout:
        """All rows without padding, one after the other."""
        rows, length = self.shape
        columns_T = torch.arange(length, device=self.source_N.device)
        real_M = (columns_T < self.lengths_B.unsqueeze(1)).flatten()
        place_BT = (real_M.cumsum(0) - 1).view(rows, length)
        return Layout(
            index_M=self._place_BT.flatten()[real_M],
            back_N=place_BT.flatten()[self.source_N],
            duplicates=[(start, n, place_BT[copies, :n].flatten()) for start, n, copies in self._prefixes],
        )

    @cached_property
    def starts(self) -> Tensor:
        """int32 ``[B + 1]``: where each row of `ragged` starts, and its end."""
        ends_B = self.lengths_B.cumsum(0)
        return torch.nn.functional.pad(ends_B, (1, 0)).int()

    @cached_property
    def attention(self) -> tuple[Layout, list[tuple[int, int]]]:
        """Rows in blocks of like length: the layout, and each block's number of rows and places a row."""
        widths = [1 << max(length - 1, 0).bit_length() for length in self.lengths_B.tolist()]
        blocks = [[row for row, own in enumerate(widths) if own == width] for width in sorted(set(widths))]
        rows = [torch.tensor(block, device=self.source_N.device) for block in blocks]
        lengths = [max(int(self.lengths_B[block].max()), 1) for block in rows]
        shapes = [(len(block), length) for block, length in zip(rows, lengths, strict=True)]
        return self._layout(rows, lengths), shapes

    def _layout(self, blocks: Sequence[Tensor], lengths: Sequence[int]) -> Layout:
        """Arrange blocks of rows one after the other; ``lengths`` are the places of each block's rows."""
        start = 0
        device = self.source_N.device
        place_BT = torch.zeros(self.shape, dtype=torch.long, device=device)
        indices = []
        for rows, length in zip(blocks, lengths, strict=True):
            place_BT[rows, :length] = torch.arange(start, start + len(rows) * length, device=device).view(-1, length)
            indices.append(self._place_BT[rows, :length].flatten())
            start += len(rows) * length
        return Layout(
            index_M=torch.cat(indices),
            back_N=place_BT.flatten()[self.source_N],
            duplicates=[(start, n, place_BT[copies, :n].flatten()) for start, n, copies in self._prefixes],
        )
