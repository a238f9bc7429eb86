"""Sparse token-level preference optimisation (arXiv 2410.05102), DPO, TDPO1 and MaPO; equations in README.md.

A policy learns from pairs of responses to one prompt. The value of a response is a sum over its tokens: the log-ratio
to the reference times one mask, and KL(reference || policy) times another. The variants differ in how the masks are
made: constants (DPO, TDPO1), the reference's activations (MaPO), or heads that are trained on the reference's hidden
states and can switch tokens off (SparsePO).

Shapes: B sequences, T tokens, P pairs, K = 2 masks (reward, KL) or the heads' outputs.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from rlkl.batch import Batch, LossOutput
from rlkl.functional import preference
from rlkl.functional.preference import TokenMasks
from rlkl.functional.reduce import masked
from rlkl.seeds import derive_seed
from rlkl.signals import Signal, Signals
from rlkl.types import Example, Rollout, RolloutGroup
from rlkl.updates.base import Heads, ModelShape, PolicyUpdate
from rlkl.updates.settings import SparsePoSettings
from rlkl.updates.sparsepo.mask_heads import LayerMeans, MaskHeads


class SparsePo(PolicyUpdate):
    """Preferences, token by token; no rewards beyond who wins, no importance ratio."""

    rule: ClassVar[str] = "sparsepo"

    def __init__(self, settings: SparsePoSettings) -> None:
        self.settings = settings
        self.trains_masks = settings.trains_masks

    @property
    def needs(self) -> frozenset[Signal]:
        needs = {Signal.POLICY_LOGPROBS, Signal.REFERENCE_LOGPROBS}
        if self.settings.mask != "none":
            needs.add(self._kl)
        if self.trains_masks:
            needs.add(Signal.HEADS)
        if self.trains_masks or self.settings.mask == "mapo":
            needs.add(Signal.PROXIMAL_HEADS)
        return frozenset(needs)

    @property
    def _kl(self) -> Signal:
        return replace(Signal.KL_REFERENCE_TO_POLICY, top_k=self.settings.kl_top_k)

    def build_heads(self, model: ModelShape) -> Heads | None:
        if self.settings.mask == "mapo":
            return LayerMeans()
        return MaskHeads(model, self.settings) if self.trains_masks else None

    def select(self, groups: Sequence[RolloutGroup]) -> list[Example]:
        """Return the best and the worst rollout of each group whose rewards differ by more than ``min_gap``.

        Ties are broken by a draw that is seeded by the recipe, the prompt and the step: neither the order of the
        samples nor their length decides.
        """
        examples: list[Example] = []
        for number, group in enumerate(groups):
            rewards = [rollout.reward for rollout in group.rollouts]
            if not rewards or max(rewards) - min(rewards) <= self.settings.min_gap:
                continue
            best, worst = (_one_with(group, reward, self.seed) for reward in (max(rewards), min(rewards)))
            if best.completion.token_ids != worst.completion.token_ids:
                pair = len(examples) // 2
                examples += [
                    Example(prompt=group.prompt, rollout=rollout, group=number, list=pair, rank=rank)
                    for rank, rollout in enumerate((best, worst))
                ]
        return examples

    def token_columns(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return both masks at the start of the step, for the sample records."""
        if Signal.PROXIMAL_HEADS not in self.needs:
            return {}
        masks = self._masks(batch, batch.signals, Signal.PROXIMAL_HEADS)
        return {"reward_mask": masks.reward_BT, "kl_mask": masks.kl_BT}

    def loss(self, batch: Batch, signals: Signals) -> LossOutput:
        """Return terms ``preference`` and, with an L1 weight, ``l1``, each a mean over the step's pairs."""
        policy_BT = masked(signals[Signal.POLICY_LOGPROBS], batch.response_BT)
        log_ratio_BT = policy_BT - masked(signals[Signal.REFERENCE_LOGPROBS], batch.response_BT)
        kl_BT = torch.zeros_like(log_ratio_BT)
        if self.settings.mask != "none":
            kl_BT = masked(signals[self._kl], batch.response_BT)
        masks = self._masks(batch, signals, Signal.HEADS if self.trains_masks else Signal.PROXIMAL_HEADS)
        rewards_B = preference.implicit_rewards(log_ratio_BT, kl_BT, masks, beta=self.settings.beta)
        chosen_P, rejected_P = preference.pair_rows(batch.list_B, batch.rank_B)
        margin_P = rewards_B[chosen_P] - rewards_B[rejected_P]
        pairs = batch.denominators.lists
        losses_P = preference.preference_losses(margin_P) * batch.weight_B[chosen_P]
        terms = {"preference": losses_P.sum() / pairs}
        if self.trains_masks and self.settings.l1_reward + self.settings.l1_kl > 0:
            terms["l1"] = self._l1(masks, torch.cat([chosen_P, rejected_P])) / pairs
        lengths_B = batch.response_BT.sum(dim=1)
        metrics = {
            "update/preference_accuracy": (margin_P > 0).sum() / pairs,
            "update/preference_margin": margin_P.sum() / pairs,
            "update/chosen_implicit_reward": rewards_B[chosen_P].sum() / pairs,
            "update/chosen_length_gap": (lengths_B[chosen_P] - lengths_B[rejected_P]).sum() / pairs,
        }
        if self.settings.mask != "none":
            metrics["kl/exact_reference_to_policy"] = kl_BT.sum() / batch.denominators.tokens
        if Signal.PROXIMAL_HEADS in self.needs:
            metrics |= self._mask_metrics(batch, masks, (chosen_P, rejected_P))
        return LossOutput(
            loss=torch.stack(list(terms.values())).sum(),
            terms={name: term.detach() for name, term in terms.items()},
            metrics={name: value.detach() for name, value in metrics.items()},
        )

    def _masks(self, batch: Batch, signals: Signals, heads: Signal) -> TokenMasks:
        """Compute both masks: zero outside the response, and 1 inside for a term that ``masked_terms`` leaves out."""
        response_BT = batch.response_BT
        ones_BT = response_BT.float()
        if self.settings.mask in ("none", "ones"):
            return TokenMasks(ones_BT, ones_BT if self.settings.mask == "ones" else torch.zeros_like(ones_BT))
        heads_BTK = torch.where(response_BT.unsqueeze(-1), signals[heads], 0.0)
        if self.trains_masks:
            reward_BT, kl_BT = heads_BTK.unbind(dim=-1)
        else:
            reward_BT = kl_BT = preference.activation_mask(heads_BTK, response_BT)
        return TokenMasks(
            ones_BT if self.settings.masked_terms == "kl" else reward_BT,
            ones_BT if self.settings.masked_terms == "reward" else kl_BT,
        )

    def _l1(self, masks: TokenMasks, rows_B: Tensor) -> Tensor:
        """Sum over the tokens of both responses. A common mask would count twice, so its weights are halved."""
        share = 0.5 if self.settings.mask == "sparse_common" else 1.0
        reward, kl = (mask_BT[rows_B].abs().sum() for mask_BT in masks)
        return share * (self.settings.l1_reward * reward + self.settings.l1_kl * kl)

    def _mask_metrics(self, batch: Batch, masks: TokenMasks, rows: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        counts, beta = batch.denominators, self.settings.beta
        silent_B = ~(masks.reward_BT.any(dim=1) | masks.kl_BT.any(dim=1))
        chosen_P, rejected_P = rows
        metrics = {"mask/dead_pairs": (silent_B[chosen_P] & silent_B[rejected_P]).sum().float()}
        for name, mask_BT in (("reward", masks.reward_BT), ("kl", masks.kl_BT)):
            zeros_B = preference.zero_fraction(mask_BT, batch.response_BT)
            metrics[f"mask/{name}_zero_fraction"] = zeros_B.sum() / counts.sequences
            metrics[f"mask/{name}_effective_beta"] = beta * mask_BT.sum() / counts.tokens
        return metrics


def _one_with(group: RolloutGroup, reward: float, seed: int) -> Rollout:
    """Draw one of the group's rollouts with this reward; the rollouts' order does not matter."""
    tied = sorted(
        (rollout for rollout in group.rollouts if rollout.reward == reward), key=lambda rollout: rollout.sample_index
    )
    drawn = derive_seed(seed, "preference", tied[0].weights_version, group.prompt.id, repr(reward))
    return random.Random(drawn).choice(tied)
