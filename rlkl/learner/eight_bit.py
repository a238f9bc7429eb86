"""AdamW with moments of 8 bits, of bitsandbytes (Dettmers et al., arXiv 2110.02861).

bitsandbytes rather than torchao: its kernels for CUDA and CPU come compiled, where torchao compiles one for each shape
of a parameter at the first step, and its state is plain tensors, which a checkpoint can hold under names of its own.

A moment is numbers of 8 bits, and a float32 scale for each block of 256 of them. Blocks follow each other along the
parameter's last dimension. So a part of a sharded parameter has whole blocks, and a checkpoint can be loaded with any
number of ranks, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from bitsandbytes.optim.adamw import AdamW8bit as _AdamW8bit
from torch import Tensor

from rlkl.costs.eight_bit import BLOCK

_TABLES = ("qmap1", "qmap2")


class AdamW8bit(_AdamW8bit):
    """AdamW whose moments have 8 bits for the parameters ``in_8_bit``, and 32 for the others."""

    def __init__(self, groups: Any, *, in_8_bit: Sequence[Tensor], **settings: Any) -> None:
        self._in_8_bit = {id(parameter) for parameter in in_8_bit}
        super().__init__(groups, min_8bit_size=0, **settings)
        self.initialized = True  # else the first step would move the counts of steps to the GPU, and wait for each
        self._places = {
            id(p): (g, i) for g, group in enumerate(self.param_groups) for i, p in enumerate(group["params"])
        }

    def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
        """Return the settings of one parameter."""
        parameter = group["params"][pindex]
        bits = 8 if id(parameter) in self._in_8_bit else 32
        return {**super().get_config(gindex, pindex, group), "optim_bits": bits}

    def begin(self, parameter: Tensor) -> None:
        """Set both moments to zero."""
        group, index = self._places[id(parameter)]
        self.init_state(self.param_groups[group], parameter, group, index)

    def init_state(self, group: dict[str, Any], p: Tensor, gindex: int, pindex: int) -> None:
        """Set both moments to zero; the scales have a row for each row of the parameter."""
        super().init_state(group, p, gindex, pindex)
        state = self.state[p]
        state["step"] = torch.zeros(())
        for key in ("absmax1", "absmax2"):
            if key in state:
                state[key] = state[key].view(*p.shape[:-1], p.shape[-1] // BLOCK)

    def update_step(self, group: dict[str, Any], p: Tensor, gindex: int, pindex: int) -> None:
        """Move one parameter. A rank may hold an empty part of it."""
        state = self.state[p]
        made = state["step"]
        scales = {key: state[key] for key in ("absmax1", "absmax2") if key in state}
        if p.numel():
            try:
                state.update({key: scale.view(-1) for key, scale in scales.items()}, step=int(made))
                super().update_step(group, p, gindex, pindex)
            finally:
                state.update(scales, step=made)
        state["step"] = made + 1

    def kept(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return ``step``, the moments ``state1`` and ``state2``, and their scales ``absmax1`` and ``absmax2``."""
        return {key: tensor for key, tensor in self.state.get(parameter, {}).items() if key not in _TABLES}
