"""List-wise preferences: Plackett-Luce with weights from the rewards (PLD, arXiv 2506.12542); formulas in README.md.

All completions of a prompt form a list, ordered by falling reward. The score of a completion is its implicit reward,
``beta`` times its log-ratio to the reference. The loss asks for each place of the order that the completion there has a
larger score than all that follow, with weight softmax(reward / tau). Two completions give DPO times such a weight.

Edge cases: a group of equal rewards, of equal completions, or of one is skipped; the loss is an exact mean over the
orders of tied completions; an empty completion has score 0 and keeps its place.

Shapes: B sequences, T tokens, L lists, G places of the longest list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from rlkl.batch import Batch, LossOutput
from rlkl.functional import listwise
from rlkl.functional.reduce import masked
from rlkl.signals import Signal, Signals
from rlkl.types import Example, RolloutGroup
from rlkl.updates.base import PolicyUpdate
from rlkl.updates.settings import ListwiseSettings


class Listwise(PolicyUpdate):
    """Learns the order of a prompt's completions; no value model, no importance ratio."""

    rule: ClassVar[str] = "listwise"

    def __init__(self, settings: ListwiseSettings) -> None:
        self.settings = settings

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({Signal.POLICY_LOGPROBS, Signal.REFERENCE_LOGPROBS})

    def select(self, groups: Sequence[RolloutGroup]) -> list[Example]:
        """Return each group whose rewards differ by more than ``min_gap`` as a list, best first.

        Ties are listed by sample index. That is only for display: the loss finds ties by the rewards.
        """
        examples: list[Example] = []
        lists = 0
        for number, group in enumerate(groups):
            ordered = sorted(group.rollouts, key=lambda rollout: (-rollout.reward, rollout.sample_index))
            if not ordered or ordered[0].reward - ordered[-1].reward <= self.settings.min_gap:
                continue
            if len({rollout.completion.token_ids for rollout in ordered}) == 1:
                continue
            examples += [
                Example(prompt=group.prompt, rollout=rollout, group=number, list=lists, rank=rank)
                for rank, rollout in enumerate(ordered)
            ]
            lists += 1
        return examples

    def loss(self, batch: Batch, signals: Signals) -> LossOutput:
        """Return the term ``listwise``, a mean over the step's lists. The weight of a list is the mean of its rows'."""
        scores_B = self._scores(batch, signals)
        rows_LG, present_LG = listwise.list_rows(batch.list_B)
        scores_LG, rewards_LG = scores_B[rows_LG], batch.rewards_B[rows_LG].double()
        alpha_LG = listwise.place_weights(rewards_LG, present_LG, tau_L=self._tau(rewards_LG, present_LG))
        losses_L = listwise.plackett_luce_losses(scores_LG, rewards_LG, alpha_LG, present_LG)
        weight_L = _mean(batch.weight_B[rows_LG].double(), present_LG)
        loss = ((losses_L * weight_L).sum() / batch.denominators.lists).float()
        lengths_LG = batch.response_BT.sum(dim=1)[rows_LG].double()
        metrics = _metrics(scores_LG.detach().double(), rewards_LG, present_LG)
        best_LG = _extreme(rewards_LG, present_LG, 1)
        metrics["update/best_weight"] = torch.where(best_LG, alpha_LG, 0.0).sum(dim=1)
        metrics["update/best_length_gap"] = _mean(lengths_LG, best_LG) - _mean(lengths_LG, present_LG)
        return LossOutput(
            loss=loss,
            terms={"listwise": loss.detach()},
            metrics={name: (x_L.sum() / batch.denominators.lists).float() for name, x_L in metrics.items()},
        )

    def _scores(self, batch: Batch, signals: Signals) -> Tensor:
        """Return beta times the sum, or the mean, of log policy - log reference over each response, ``[B]``."""
        policy_BT = masked(signals[Signal.POLICY_LOGPROBS], batch.response_BT)
        ratios_B = (policy_BT - masked(signals[Signal.REFERENCE_LOGPROBS], batch.response_BT)).sum(dim=1)
        if self.settings.over_tokens == "mean":
            ratios_B = ratios_B / batch.response_BT.sum(dim=1).clamp(min=1)
        return self.settings.beta * ratios_B

    def _tau(self, rewards_LG: Tensor, present_LG: Tensor) -> Tensor:
        """Return tau in units of reward, ``[L]``. The standard deviation divides by n - 1."""
        tau_L = torch.full_like(rewards_LG[:, 0], self.settings.tau)
        if self.settings.tau_unit == "reward":
            return tau_L
        gaps_LG = torch.where(present_LG, rewards_LG - _mean(rewards_LG, present_LG).unsqueeze(1), 0.0)
        std_L = (gaps_LG.square().sum(dim=1) / (present_LG.sum(dim=1) - 1).clamp(min=1)).sqrt()
        return tau_L * torch.where(std_L > 0, std_L, 1.0)  # 0: rewards that are equal once rounded to float32


def _metrics(scores_LG: Tensor, rewards_LG: Tensor, present_LG: Tensor) -> dict[str, Tensor]:
    """Return metrics of each list, ``[L]``."""
    both_LGG = present_LG.unsqueeze(1) & present_LG.unsqueeze(2)
    ordered_LGG = both_LGG & (rewards_LG.unsqueeze(2) > rewards_LG.unsqueeze(1))
    right_LGG = ordered_LGG & (scores_LG.unsqueeze(2) > scores_LG.unsqueeze(1))
    tied_LG = (both_LGG & (rewards_LG.unsqueeze(2) == rewards_LG.unsqueeze(1))).sum(dim=2) > 1
    best_L, worst_L = (_mean(scores_LG, _extreme(rewards_LG, present_LG, sign)) for sign in (1, -1))
    return {
        "update/rank_accuracy": right_LGG.sum(dim=(1, 2)) / ordered_LGG.sum(dim=(1, 2)).clamp(min=1),
        "update/rank_margin": best_L - worst_L,
        "update/best_implicit_reward": best_L,
        "update/tied_fraction": _mean(tied_LG.double(), present_LG),
    }


def _extreme(rewards_LG: Tensor, present_LG: Tensor, sign: int) -> Tensor:
    """Return the members of the highest (``sign`` 1) or the lowest (-1) reward of each list, bool ``[L, G]``."""
    signed_LG = torch.where(present_LG, sign * rewards_LG, -torch.inf)
    return present_LG & (signed_LG == signed_LG.amax(dim=1, keepdim=True))


def _mean(x_LG: Tensor, mask_LG: Tensor) -> Tensor:
    """Return the mean over some members of each list, ``[L]``."""
    return torch.where(mask_LG, x_LG, 0.0).sum(dim=1) / mask_LG.sum(dim=1)
