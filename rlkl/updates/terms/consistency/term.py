"""Give the same response the same probability if the picture is a little noisy (the self-teaching of arXiv 2009.05166).

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from rlkl.batch import Batch
from rlkl.functional.kl import kl_policy_to_reference_k3
from rlkl.functional.reduce import masked
from rlkl.signals import Signal, Signals
from rlkl.updates.terms.base import Term
from rlkl.updates.terms.consistency.settings import ConsistencySettings

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


class Consistency(Term):
    """``coef`` times KL(clean || noisy): the policy given the picture, held fixed, and given its noisy copy.

    A k3 of sampled tokens. They are drawn from the side that is fixed, so its gradient is that of this KL.
    """

    Settings = ConsistencySettings
    settings: ConsistencySettings

    @property
    def own_view(self) -> str:
        return f"noisy_{self.settings.noise_std:g}".replace(".", "_").replace("-", "_")

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({Signal.POLICY_LOGPROBS, Signal("logprobs", view=self.own_view)})

    def change_picture(self, picture: Picture, *, seed: int) -> Picture:
        from PIL import Image as pil

        values = np.asarray(picture) / 255.0
        noise = np.random.default_rng(seed).normal(0.0, self.settings.noise_std, values.shape)
        return pil.fromarray(np.rint((values + noise).clip(0.0, 1.0) * 255).astype(np.uint8))

    def _nats(self, batch: Batch, signals: Signals) -> Tensor:
        """Return the k3 ``[B, T]`` of response tokens of sequences with a picture, zero elsewhere."""
        seen_BT = batch.response_BT & batch.pictured_B.unsqueeze(1)
        clean_BT = masked(signals[Signal.POLICY_LOGPROBS], seen_BT).detach()
        noisy_BT = masked(signals[Signal("logprobs", view=self.own_view)], seen_BT)
        return kl_policy_to_reference_k3(clean_BT, noisy_BT) * batch.weight_B.unsqueeze(1)

    def loss(self, batch: Batch, signals: Signals) -> Tensor:
        return self.settings.coef * self._nats(batch, signals).sum() / batch.denominators.pictured_tokens

    def metrics(self, batch: Batch, signals: Signals) -> Mapping[str, Tensor]:
        """Return ``nats`` per response token of a sequence with a picture."""
        return {"nats": self._nats(batch, signals).detach().sum() / batch.denominators.pictured_tokens}
