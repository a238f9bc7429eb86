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
from statistics import fmean
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from rlkl.batch import Batch, LossOutput
from rlkl.functional import perception, surrogate
from rlkl.functional.reduce import masked
from rlkl.seeds import derive_seed
from rlkl.signals import Signal, Signals
from rlkl.updates.base import PictureContext
from rlkl.updates.grpo.rule import Grpo
from rlkl.updates.papo.corruption import corrupt
from rlkl.updates.papo.loss_hacking import FIRST_STEPS, loss_hacking_alarms
from rlkl.updates.papo.settings import PapoSettings
from rlkl.updates.papo.terms import CleanEntropy, CorruptedEntropy, PerceptionKl, PictureTerm, picture_tokens

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

DUAL_CLIP = 3.0
"""If A < 0, the surrogate is at most -3 A: a bad token gets no gradient once its ratio exceeds 3, as in the code."""


class Papo(Grpo):
    """GRPO, implicit perception KL, double entropy."""

    rule: ClassVar[str] = "papo"
    settings: PapoSettings

    def __init__(self, settings: PapoSettings) -> None:
        super().__init__(settings)
        self.own_terms: Mapping[str, PictureTerm] = {
            "perception": PerceptionKl(settings, self._weights),
            "entropy": CleanEntropy(settings),
            "corrupted_entropy": CorruptedEntropy(settings),
        }

    @property
    def needs(self) -> frozenset[Signal]:
        return super().needs.union({Signal.CORRUPTED_LOGPROBS}, *(term.needs for term in self.own_terms.values()))

    @property
    def views(self) -> frozenset[str]:
        return frozenset({Signal.CORRUPTED_LOGPROBS.view})

    def change_picture(self, view: str, picture: Picture, context: PictureContext) -> Picture:
        """Return the picture corrupted as ``update.corruption`` describes."""
        seed = derive_seed(self.seed, "corruption", *context.key)
        return corrupt(picture, self.settings.corruption, seed=seed, attention=context.attention)

    def token_columns(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return ``perception_kl``: each token's k3 of clean against corrupted, weights at the start of the step."""
        clean_BT = masked(batch.signals[Signal.PROXIMAL_LOGPROBS], picture_tokens(batch))
        corrupted_BT = masked(batch.signals[Signal.CORRUPTED_LOGPROBS], picture_tokens(batch))
        return {"perception_kl": perception.kl_clean_to_corrupted_k3(clean_BT, corrupted_BT)}

    def loss(self, batch: Batch, signals: Signals) -> LossOutput:
        """Sum GRPO's terms and PAPO's own. The metrics of the latter are of sequences with a picture."""
        output = super().loss(batch, signals)
        own = {name: term.loss(batch, signals) for name, term in self.own_terms.items()}
        metrics = [term.metrics(batch, signals) for term in self.own_terms.values()]
        return LossOutput(
            loss=output.loss + torch.stack(list(own.values())).sum(),
            terms={**output.terms, **{name: loss.detach() for name, loss in own.items()}},
            metrics={**output.metrics, **{key: value for found in metrics for key, value in found.items()}},
        )

    def _surrogate(self, batch: Batch, signals: Signals, policy_BT: Tensor) -> surrogate.Surrogate:
        single = super()._surrogate(batch, signals, policy_BT)
        if self.choices.surrogate != "clip":
            return single
        advantages_BT = masked(batch.advantages_BT, batch.response_BT)
        return surrogate.dual_clipped(single, advantages_BT, limit=DUAL_CLIP)

    def alarms(self, records: Sequence[Mapping[str, float]]) -> dict[str, str]:
        """Return signs that the perception KL is hacked. They change nothing in the training."""
        cut = super().alarms(records)
        seen = [record for record in records if "perception/kl" in record]  # a step that trained on nothing has none
        if not seen:
            return cut
        return cut | loss_hacking_alarms(seen, first_kl=fmean(record["perception/kl"] for record in seen[:FIRST_STEPS]))
