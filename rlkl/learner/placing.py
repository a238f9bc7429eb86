"""Divide the learner's models among its ranks."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from rlkl.learner.signals import Models
from rlkl.models.language_model import LanguageModel
from rlkl.models.sharding import reshard, shard

_PASSES = ("hidden", "layers")
"""Methods of a model that run its weights. The head follows one of them, while the root group is gathered."""


def shard_models(models: Models, mesh: DeviceMesh | None, device: torch.device) -> list[nn.Module]:
    """Divide the policy, the frozen models, and the backbone of heads that have one; return those that train.

    The models must be in host memory, with the same weights on every rank; afterwards they are on ``device``. Small
    heads stay whole. Without a mesh nothing changes.
    """
    if mesh is None:
        return []
    trained: list[nn.Module] = []
    for scorer in (models.policy, *models.frozen.values()):
        if isinstance(scorer, LanguageModel):  # the reference of a LoRA policy is that policy
            shard(scorer, scorer.model.config, mesh, dtype=scorer.dtype, passes=_PASSES)
            scorer.device = device
            _first_pass(scorer)
            trained += [scorer] if scorer is models.policy else []
    for module in models.heads.children() if models.heads is not None else ():
        if isinstance(module, PreTrainedModel):
            shard(module, module.config, mesh, dtype=module.dtype)
            trained.append(module)
    return trained


@torch.no_grad()
def _first_pass(model: LanguageModel) -> None:
    """Run two tokens: FSDP notes in its first pass which parameters train, and adapters must be switched on then."""
    model.hidden(torch.ones((1, 2), dtype=torch.int64, device=model.device))
    reshard(model)
