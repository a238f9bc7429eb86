"""Measure the attention that each part of a picture receives in a vision tower."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_window_index


@torch.no_grad()
def received_attention(tower: Any, patches_PD: Tensor, grid_3: Tensor) -> np.ndarray:
    """Return the attention that each merged cell of one picture receives, ``[rows, columns]``, for ``mask_salient``.

    It is the mean over heads, queries and the blocks that attend to the whole picture, without a patch's attention to
    itself, summed over the patches of a merged cell. ``tower`` is the vision tower of a Qwen2-VL or Qwen2.5-VL.
    """
    received: list[Tensor] = []

    def note(attention: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        hidden_PH = arguments[0] if arguments else keywords["hidden_states"]
        received.append(_received(attention, hidden_PH, keywords["position_embeddings"]))

    whole = getattr(tower, "fullatt_block_indexes", range(len(tower.blocks)))
    hooks = [tower.blocks[index].attn.register_forward_pre_hook(note, with_kwargs=True) for index in whole]
    try:
        tower(patches_PD.type(tower.dtype), grid_thw=grid_3[None])
    finally:
        for hook in hooks:
            hook.remove()
    merged = tower.spatial_merge_size
    cells_C = torch.stack(received).mean(dim=0).reshape(-1, merged**2).sum(dim=1)
    rows, columns = int(grid_3[1]) // merged, int(grid_3[2]) // merged
    return cells_C[_order(tower, grid_3)].reshape(rows, columns).double().cpu().numpy()


def _received(attention: Any, hidden_PH: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean attention weight that each patch receives from the other patches, averaged over heads."""
    query_PNH, key_PNH, _ = attention.qkv(hidden_PH).reshape(len(hidden_PH), 3, attention.num_heads, -1).unbind(1)
    query_PNH, key_PNH = apply_rotary_pos_emb_vision(query_PNH, key_PNH, *rotary)
    scores_NPP = torch.einsum("qnh,knh->nqk", query_PNH.float(), key_PNH.float()) * attention.scaling
    weights_PP = scores_NPP.softmax(dim=-1).mean(dim=0)
    return (weights_PP - weights_PP.diag().diag()).mean(dim=0)


def _order(tower: Any, grid_3: Tensor) -> Tensor:
    """Return the tower's index of each merged cell, row by row: the tower sorts the cells by window."""
    cells = int(grid_3.prod()) // tower.spatial_merge_size**2
    if not hasattr(tower, "window_size"):
        return torch.arange(cells)
    index_C, _ = get_vision_window_index(
        grid_3[None],
        spatial_merge_size=tower.spatial_merge_size,
        window_size=tower.window_size,
        patch_size=tower.patch_size,
        kwargs={},
    )
    return index_C.argsort()
