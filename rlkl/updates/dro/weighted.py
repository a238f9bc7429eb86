"""A rule whose groups are weighted: what `rlkl.updates.build_update` returns if the recipe has ``update.dro``.

The loss of a prompt group is minus the mean reward of its rollouts. Groups of high loss get large weights, in closed
form (`rlkl.functional.dro`), and each weight multiplies the advantages of its group, as a constant. A KL, an entropy or
a value loss of the rule has no weight.

Under GRPO a group of equal rewards has no gradient, so a weight given to it would be lost: ``dro_groups`` of the rule's
settings says whether such groups get one.

Shapes: B sequences, T tokens, G groups that get a weight, P all groups of the step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlkl.batch import ROLES, Batch
from rlkl.functional.dro import kl_dro_weights, moving_soft_maximum, soft_maximum
from rlkl.updates.base import PolicyUpdate
from rlkl.updates.dro.settings import DroSettings
from rlkl.updates.wrapped import Wrapped

TAIL = 0.3
"""Share of the groups, those of lowest reward, in ``dro/tail_reward``."""

_WORST = "dro/soft_worst_reward"
_LEVEL = "dro/level"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Weights:
    """The weights of a step."""

    rewards_P: Tensor
    """float64: the mean reward of each group."""
    weights_G: Tensor
    level: Tensor | None
    """The moving soft maximum of the losses, this step included; None if there has been no group with a weight."""
    weight_B: Tensor
    """float64: 1 for the sequences of groups without a weight."""


class WithDro(Wrapped):
    """Multiplies the advantages of each group by its weight."""

    def __init__(self, rule: PolicyUpdate, settings: DroSettings) -> None:
        super().__init__(rule)
        self._dro = settings
        self._level: float | None = None
        """The moving soft maximum of the losses, after the last finished step."""

    def credit(self, batch: Batch) -> Batch:
        """Weigh the advantages that the rule has filled in."""
        credited = self.inner.credit(batch)
        weight_B = self._weigh(credited).weight_B.to(credited.advantages_BT.dtype)
        return replace(credited, advantages_BT=credited.advantages_BT * weight_B.unsqueeze(1))

    def batch_metrics(self, batch: Batch) -> dict[str, float]:
        found = self._weigh(batch)
        if not len(found.rewards_P):
            return self.inner.batch_metrics(batch)
        tail = found.rewards_P.sort().values[: math.ceil(TAIL * len(found.rewards_P))]
        metrics = {"dro/groups": float(len(found.weights_G)), "dro/tail_reward": float(tail.mean())}
        if found.level is not None and len(found.weights_G):
            metrics["dro/ess"] = float(1 / found.weights_G.square().mean())
            metrics["dro/weight_max"] = float(found.weights_G.max())
            metrics[_WORST] = -float(found.level)
        return {**self.inner.batch_metrics(batch), **metrics}

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Take over the normaliser of a finished step."""
        self.inner.observe(metrics)
        if _WORST in metrics:
            self._level = -metrics[_WORST]

    def state(self) -> dict[str, float]:
        return self.inner.state() | ({} if self._level is None else {_LEVEL: self._level})

    def load_state(self, state: Mapping[str, float]) -> None:
        self.inner.load_state({key: value for key, value in state.items() if key != _LEVEL})
        self._level = state.get(_LEVEL)

    @torch.no_grad()
    def _weigh(self, batch: Batch) -> _Weights:
        """Compute the weights of a credited batch; nothing is remembered."""
        main_B = batch.role_B == ROLES.index("main")
        groups_P, index_B = torch.unique(batch.group_B[main_B], return_inverse=True)
        rewards_B = batch.rewards_B[main_B].double()
        rewards_P = _reduced(rewards_B, index_B, len(groups_P), "mean")
        trained_P = _reduced(batch.response_BT[main_B].any(dim=1).double(), index_B, len(groups_P), "amax") > 0
        if self.settings.dro_groups == "with_spread":
            lowest_P = _reduced(rewards_B, index_B, len(groups_P), "amin")
            trained_P &= _reduced(rewards_B, index_B, len(groups_P), "amax") > lowest_P
        losses_G = -rewards_P[trained_P]
        level = None if self._level is None else torch.tensor(self._level, dtype=torch.float64)
        weights_G = torch.ones_like(losses_G)
        if len(losses_G):
            level = self._moved(level, soft_maximum(losses_G, temperature=self._dro.temperature))
            weights_G = kl_dro_weights(
                losses_G, level, temperature=self._dro.temperature, max_weight=self._dro.max_weight
            )
        weight_P = torch.ones_like(rewards_P).masked_scatter(trained_P, weights_G)
        weight_B = torch.ones(batch.size, dtype=torch.float64).masked_scatter(main_B, weight_P[index_B])
        return _Weights(rewards_P=rewards_P, weights_G=weights_G, level=level, weight_B=weight_B)

    def _moved(self, level: Tensor | None, now: Tensor) -> Tensor:
        if level is None:
            return now
        return moving_soft_maximum(level, now, temperature=self._dro.temperature, rate=self._dro.rate)


def _reduced(x_B: Tensor, index_B: Tensor, groups: int, how: str) -> Tensor:
    """Return mean, largest or smallest of each group. Every group has a member."""
    return torch.zeros(groups, dtype=x_B.dtype).scatter_reduce(0, index_B, x_B, how, include_self=False)
