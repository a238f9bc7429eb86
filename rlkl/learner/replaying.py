"""Measure replayed sequences at the start of a step, for terms whose weight depends on the sum over all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from rlkl.batch import Batch
from rlkl.learner.live import live_signals
from rlkl.learner.signals import Models, SignalSettings
from rlkl.updates.base import PolicyUpdate


@torch.no_grad()
def replay_metrics(
    models: Models, batch: Batch, settings: SignalSettings, update: PolicyUpdate, *, device: torch.device
) -> dict[str, float]:
    """Sum `PolicyUpdate.replay_metrics` over the replayed sequences of all ranks, with the weights as they are now."""
    rows_B = batch.of_role("replay")
    if not len(rows_B):
        return {}
    part = batch.rows(rows_B)
    totals: dict[str, Tensor] = {}
    for share in settings.shares(part):
        micro = part.rows(share.rows_B).to(device)
        live = live_signals(models, micro, settings, update)
        found = update.replay_metrics(micro, micro.signals.merged(live.signals))
        if share.counts:
            totals = {name: totals[name] + value if name in totals else value for name, value in found.items()}
    return {name: float(value) for name, value in settings.ranks.sum_named(totals).items()}
