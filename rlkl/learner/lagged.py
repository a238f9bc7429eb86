"""The frozen model ``lagged``: the policy's own weights of some optimizer steps ago (after SAF, arXiv 2205.14083)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from rlkl.errors import CheckpointError
from rlkl.learner.average import parts_of
from rlkl.learner.signals import Scorer
from rlkl.models.sharding import like, reshard

_USED, _WAITING = "lagged.", "lagged_next."


class Lagged:
    """Two snapshots of the policy's trained weights: one that the frozen model runs on, and one that waits.

    After each optimizer step whose number is a multiple of ``lag``, the waiting snapshot comes into use and a new one
    is taken. So the model is at least ``lag`` and at most ``2 lag - 1`` optimizer steps old; before step ``2 lag`` it
    is the start. The snapshots have the precision of the frozen model: weights are copied and never added up.
    """

    def __init__(self, model: Scorer | None = None, lag: int = 1) -> None:
        """Take the frozen model that runs on the older snapshot; None keeps none."""
        self._model, self._lag = model, lag
        self.used: dict[str, Tensor] = {}
        """The weights that the model runs on, by the names of the parameters."""
        self.waiting: dict[str, Tensor] = {}

    def begin(self, trained: Mapping[str, nn.Parameter]) -> None:
        """Take both snapshots of the start; the parameters are given by name."""
        self.used = parts_of(self._model, trained)
        self.waiting = {name: weight.clone() for name, weight in self.used.items()}

    @torch.no_grad()
    def follow(self, trained: Mapping[str, nn.Parameter], steps: int) -> None:
        """Move the snapshots on if it is time. Call it after each optimizer step with the number of steps made."""
        if not self.used or steps % self._lag:
            return
        for name, weight in self.used.items():
            weight.copy_(self.waiting[name])
            self.waiting[name].copy_(trained[name])
        self.write_back()

    def write_back(self) -> None:
        """Let the next pass of the model gather its shards anew."""
        reshard(self._model)

    def release(self) -> None:
        """Free the snapshots. No optimizer step can follow."""
        self._model, self.used, self.waiting = None, {}, {}

    def on_disk(self, parameters: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return both snapshots by their names in a checkpoint; as shards if the policy's ``parameters`` are shards."""
        return {
            f"{prefix}{name}": weight if parameters is None else like(parameters[name], weight)
            for prefix, snapshot in ((_USED, self.used), (_WAITING, self.waiting))
            for name, weight in snapshot.items()
        }

    def check(self, saved: Iterable[str], path: Path) -> None:
        """Raise `CheckpointError` if snapshots are kept and the saved state, by the names of its tensors, has none."""
        if self.used and not any(name.startswith(_USED) for name in saved):
            raise CheckpointError(
                f"{path} holds no earlier weights of the policy, and update.terms of this recipe compares with them "
                "(to: lagged). Resume with the recipe of that run."
            )
