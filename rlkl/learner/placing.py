"""Divide the learner's models among its ranks.

Each is divided as soon as it is built, so that the host memory of rank 0 holds one whole model at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from rlkl.errors import InputError
from rlkl.learner.signals import Scorer
from rlkl.models.language_model import LanguageModel
from rlkl.models.scattering import is_first, together
from rlkl.models.sharding import reshard, shard
from rlkl.updates.base import Heads, ModelShape, PolicyUpdate

_PASSES = ("hidden", "layers")
"""Methods of a model that run its weights. The head follows one of them, while the root group is gathered."""


def place(model: Scorer, mesh: DeviceMesh | None, device: torch.device) -> None:
    """Divide the weights of a model that has just been built; afterwards they are on ``device``.

    Does nothing without a mesh, and nothing to the reference of a LoRA policy, which is that policy.
    """
    if mesh is None or not isinstance(model, LanguageModel):
        return
    shard(model, model.model.config, mesh, dtype=model.dtype, passes=_PASSES)
    model.device = device
    _first_pass(model)


def build_heads(update: PolicyUpdate, shape: ModelShape, mesh: DeviceMesh | None) -> Heads | None:
    """Build the heads of a rule; on several ranks, only rank 0 loads a backbone of theirs."""
    if mesh is None:
        return update.build_heads(shape)
    return together(mesh, lambda: update.build_heads(replace(shape, loads=is_first(mesh))))


def place_backbones(heads: Heads | None, mesh: DeviceMesh | None) -> Sequence[nn.Module]:
    """Divide the weights of the backbones that are attributes of the heads, and return them; small heads stay whole.

    Does nothing without a mesh. Raises `InputError` if heads keep a backbone elsewhere, where it would stay empty.
    """
    if mesh is None or heads is None:
        return []
    backbones = [module for module in heads.children() if isinstance(module, PreTrainedModel)]
    for module in backbones:
        shard(module, module.config, mesh, dtype=module.dtype)
    together(mesh, lambda: _check_filled(heads))
    return backbones


def _check_filled(heads: Heads) -> None:
    if empty := sorted(name for name, parameter in heads.named_parameters() if parameter.is_meta):
        raise InputError(
            f"the heads {type(heads).__name__} keep the weights of ModelShape.load_copy where several ranks cannot "
            f"fill them ({empty[0]}): make the model, or its base_model, an attribute of the heads"
        )


@torch.no_grad()
def _first_pass(model: LanguageModel) -> None:
    """Run two tokens: FSDP notes in its first pass which parameters train, and adapters must be switched on then."""
    model.hidden(torch.ones((1, 2), dtype=torch.int64, device=model.device))
    reshard(model)
