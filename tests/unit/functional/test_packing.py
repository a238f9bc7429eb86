"""Packed rows: every token once, shared beginnings once, and gradients that autograd agrees with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlkl.functional.packing import Layout, Packing, shared_prefixes

IDS_BT = torch.tensor(
    [
        [5, 6, 7, 1, 2, 0],
        [5, 6, 7, 1, 0, 0],
        [9, 9, 0, 0, 0, 0],
        [5, 6, 8, 3, 3, 3],
        [5, 6, 7, 1, 0, 0],
    ]
)
LENGTHS_B = torch.tensor([5, 4, 2, 6, 4])
GROUPS_B = torch.tensor([0, 0, 1, 2, 0])
REAL_BT = torch.arange(6) < LENGTHS_B.unsqueeze(1)


def packing() -> Packing:
    return Packing(LENGTHS_B, 6, shared_prefixes(IDS_BT, LENGTHS_B, GROUPS_B))


def test_a_group_shares_what_all_its_rows_begin_with():
    prefix_B, first_B = shared_prefixes(IDS_BT, LENGTHS_B, GROUPS_B)
    assert prefix_B.tolist() == [4, 4, 0, 0, 4], "row 3 begins alike and is of another group"
    assert first_B.tolist() == [0, 0, 2, 3, 0]


def test_padding_is_no_shared_token():
    ids_BT, lengths_B = torch.tensor([[4, 0, 0], [4, 0, 0]]), torch.tensor([1, 2])
    prefix_B, _ = shared_prefixes(ids_BT, lengths_B, torch.zeros(2, dtype=torch.long))
    assert prefix_B.tolist() == [1, 1]


def test_every_token_is_packed_once_with_its_position():
    packed = packing()
    assert packed.count == 5 + 0 + 2 + 6 + 0
    assert IDS_BT.flatten()[packed.source_N].tolist() == [5, 6, 7, 1, 2, 9, 9, 5, 6, 8, 3, 3, 3]
    assert packed.positions_N.tolist() == [0, 1, 2, 3, 4, 0, 1, 0, 1, 2, 3, 4, 5]


def test_the_padded_layout_gives_the_rows_back():
    packed = packing()
    ids_N = IDS_BT.flatten()[packed.source_N]
    rows_BT = packed.padded.unpack(ids_N).view(5, 6)
    assert torch.equal(rows_BT[REAL_BT], IDS_BT[REAL_BT])


def test_the_ragged_layout_is_row_after_row():
    packed = packing()
    ids_N = IDS_BT.flatten()[packed.source_N]
    assert torch.equal(packed.ragged.unpack(ids_N), IDS_BT[REAL_BT])
    assert packed.starts.tolist() == [0, 5, 9, 11, 17, 21]


def test_attention_gets_blocks_of_like_length():
    layout, shapes = packing().attention
    assert shapes == [(1, 2), (2, 4), (2, 6)]
    ids_M = layout.unpack(IDS_BT.flatten()[packing().source_N])
    assert ids_M.tolist() == [9, 9, 5, 6, 7, 1, 5, 6, 7, 1, 5, 6, 7, 1, 2, 5, 5, 6, 8, 3, 3, 3]


@pytest.mark.parametrize("name", ["padded", "ragged", "attention"])
def test_repack_undoes_unpack_and_gradients_are_those_of_indexing(name: str):
    packed = packing()
    found = getattr(packed, name)
    layout: Layout = found[0] if name == "attention" else found
    x_N = torch.randn(packed.count, 2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.equal(layout.repack(layout.unpack(x_N)), x_N)

    weight_M = torch.randn(len(layout.index_M), 2, 3, generator=torch.Generator().manual_seed(1))
    weight_M = torch.where(_is_real(layout, packed)[:, None, None], weight_M, 0.0)  # nobody reads padding
    (ours,) = torch.autograd.grad((layout.unpack(x_N) * weight_M).sum(), [x_N])
    (expected,) = torch.autograd.grad((x_N[layout.index_M] * weight_M).sum(), [x_N])
    torch.testing.assert_close(ours, expected)

    y_M = torch.randn(len(layout.index_M), 2, 3, generator=torch.Generator().manual_seed(2)).requires_grad_()
    weight_N = torch.randn(packed.count, 2, 3, generator=torch.Generator().manual_seed(3))
    (ours,) = torch.autograd.grad((layout.repack(y_M) * weight_N).sum(), [y_M])
    (expected,) = torch.autograd.grad((y_M[layout.back_N] * weight_N).sum(), [y_M])
    assert torch.equal(ours, expected)


def _is_real(layout: Layout, packed: Packing) -> Tensor:
    """Mark the places that hold a token, not padding."""
    real_M = torch.zeros(len(layout.index_M), dtype=torch.bool)
    real_M[layout.back_N] = True
    for _, _, places in layout.duplicates:
        real_M[places] = True
    assert int(real_M.sum()) == int(packed.lengths_B.sum())
    return real_M


def test_without_groups_nothing_is_shared():
    packed = Packing(LENGTHS_B, 6)
    assert packed.count == int(LENGTHS_B.sum())
    assert packed.padded.duplicates == []
