"""Perception-Aware Policy Optimization (arXiv 2507.06448), as its released code computes it; see README.md.

GRPO or a variant of it, and three terms more. The policy is rewarded for answering otherwise when its image is
corrupted (minus gamma times a k3 of clean against corrupted), and, since that can be had by odd tokens too, its sampled
tokens are kept likely with the clean and with the corrupted image (eta1 and eta2 times their mean negative
log-likelihood).

Without ``recompute`` the corrupted log-probs are those of the weights at the start of the step, constants: eta2's term
then has no gradient and shows in the logged loss only. Sequences without an image contribute GRPO's terms alone.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import ClassVar

import torch
from torch import Tensor

from rlkl.batch import Batch, LossOutput
from rlkl.functional import perception, reduce, surrogate
from rlkl.functional.reduce import masked
from rlkl.signals import Signal, Signals
from rlkl.updates.grpo.rule import Grpo
from rlkl.updates.papo.loss_hacking import FIRST_STEPS, loss_hacking_alarms
from rlkl.updates.settings import CorruptionSettings, PapoSettings

DUAL_CLIP = 3.0
"""Where A < 0 the surrogate is at most -3 A: a bad token gets no gradient once its ratio exceeds 3, as in the code."""


class Papo(Grpo):
    """GRPO, implicit perception KL, double entropy."""

    rule: ClassVar[str] = "papo"
    settings: PapoSettings

    @property
    def needs(self) -> frozenset[Signal]:
        return super().needs | {Signal.CORRUPTED_LOGPROBS, self._trained_view}

    @property
    def _trained_view(self) -> Signal:
        """The corrupted log-probs of the loss: computed in each pass with ``recompute``, else once a step."""
        return replace(Signal.CORRUPTED_LOGPROBS, moment="live" if self.settings.recompute else "step_start")

    @property
    def corruption(self) -> CorruptionSettings:
        return self.settings.corruption

    def annealing(self, progress: float) -> float:
        """gamma now over gamma at the start: 1, or falling linearly until ``anneal_over`` of the run is done."""
        if self.settings.anneal_to is None:
            return 1.0
        end = self.settings.anneal_to / self.settings.perception_coef
        return 1.0 + (end - 1.0) * min(progress / self.settings.anneal_over, 1.0)

    def token_columns(self, batch: Batch) -> Mapping[str, Tensor]:
        """``perception_kl``: each token's k3 of clean against corrupted, with the weights that began the step."""
        image_BT = batch.response_BT & batch.corrupted_B.unsqueeze(1)
        clean_BT = masked(batch.signals[Signal.PROXIMAL_LOGPROBS], image_BT)
        corrupted_BT = masked(batch.signals[Signal.CORRUPTED_LOGPROBS], image_BT)
        return {"perception_kl": perception.kl_clean_to_corrupted_k3(clean_BT, corrupted_BT)}

    def loss(self, batch: Batch, signals: Signals) -> LossOutput:
        """GRPO's terms, then ``perception``, ``entropy``, ``corrupted_entropy``. Own metrics are of image sequences."""
        output = super().loss(batch, signals)
        image_BT = batch.response_BT & batch.corrupted_B.unsqueeze(1)
        clean_BT = masked(signals[Signal.POLICY_LOGPROBS], image_BT)
        corrupted_BT = masked(signals[self._trained_view], image_BT)
        if not self.settings.recompute:
            corrupted_BT = corrupted_BT.detach()
        kl_BT = perception.kl_clean_to_corrupted_k3(clean_BT, corrupted_BT)
        own = self._own_terms(batch, kl_BT, clean_BT, corrupted_BT)
        counts = batch.denominators
        variance_B = perception.variance_within_responses(kl_BT.detach(), image_BT)
        return LossOutput(
            loss=output.loss + torch.stack(list(own.values())).sum(),
            terms={**output.terms, **{name: term.detach() for name, term in own.items()}},
            metrics={
                **output.metrics,
                "perception/kl": kl_BT.detach().sum() / counts.corrupted_tokens,
                "perception/kl_variance": variance_B.sum() / counts.corrupted_sequences,
                "perception/entropy_clean": -clean_BT.detach().sum() / counts.corrupted_tokens,
                "perception/entropy_corrupted": -corrupted_BT.detach().sum() / counts.corrupted_tokens,
            },
        )

    def _own_terms(self, batch: Batch, kl_BT: Tensor, clean_BT: Tensor, corrupted_BT: Tensor) -> dict[str, Tensor]:
        settings, annealing = self.settings, self.annealing(batch.progress)
        weight_BT = self._weights(batch)
        # The entropies are token means whatever the aggregation, as in the authors' code.
        mean_BT = reduce.token_mean_weights(batch.response_BT, batch.denominators) * batch.weight_B.unsqueeze(1)
        return {
            "perception": -annealing * settings.perception_coef * (weight_BT * kl_BT).sum(),
            "entropy": -annealing * settings.entropy_coef * (mean_BT * clean_BT).sum(),
            "corrupted_entropy": -annealing * settings.corrupted_entropy_coef * (mean_BT * corrupted_BT).sum(),
        }

    def _surrogate(self, batch: Batch, signals: Signals, policy_BT: Tensor) -> surrogate.Surrogate:
        single = super()._surrogate(batch, signals, policy_BT)
        if self.choices.surrogate != "clip":
            return single
        advantages_BT = masked(batch.advantages_BT, batch.response_BT)
        return surrogate.dual_clipped(single, advantages_BT, limit=DUAL_CLIP)

    def alarms(self, records: Sequence[Mapping[str, float]]) -> dict[str, str]:
        """Signs that the perception KL is hacked. They change nothing in the training."""
        seen = [record for record in records if "perception/kl" in record]  # a step that trained on nothing has none
        if not seen:
            return {}
        return loss_hacking_alarms(seen, first_kl=fmean(record["perception/kl"] for record in seen[:FIRST_STEPS]))
