"""The correction for the sampler (``update.correction``) of a rule with importance ratios. See docs/correction.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from rlkl.batch import Batch
from rlkl.functional.correction import (
    CORRECTIONS,
    Bounds,
    Correction,
    correction_metrics,
    sampler_log_ratio,
)
from rlkl.updates.base_settings import CorrectedSettings

MOST_CUT = 0.2
"""Share of the tokens that may be cut before a warning."""


class SamplerCorrection:
    """Computes the weights of ``update.correction``; with ``none`` there are none."""

    def __init__(self, settings: CorrectedSettings) -> None:
        name = settings.correction
        self.name = "none" if name == "auto" else name
        if self.name == "none":
            return
        self._function, self._bounds = CORRECTIONS[self.name], Bounds(*settings.correction_bounds())

    def weighted(self, loss_BT: Tensor, batch: Batch, proximal_BT: Tensor) -> Tensor:
        """Multiply the loss of each token with its weight."""
        if self.name == "none":
            return loss_BT
        return loss_BT * self._correct(batch, proximal_BT).weight_BT

    def metrics(self, batch: Batch, proximal_BT: Tensor) -> dict[str, float]:
        """Return the metrics of a batch; ``proximal_BT`` are the log-probs of the step's start."""
        if self.name == "none":
            return {}
        return correction_metrics(self._correct(batch, proximal_BT), batch.response_BT)

    def alarms(self, records: Sequence[Mapping[str, float]]) -> dict[str, str]:
        """Return a warning if the last step cut too many tokens."""
        cut = records[-1].get("correction/cut_fraction", 0.0) if records else 0.0
        if cut <= MOST_CUT:
            return {}
        return {
            "correction": (
                f"update.correction = {self.name} cut the weight of {cut:.0%} of the tokens, whose ratio of step's "
                f"start to sampler is not within {self._bounds.low:g} and {self._bounds.high:g}. If "
                "rollout/mismatch_max is large, sampler and learner differ: look at weights/probe_max, or set "
                "model.dtype=float32. If it is small, the bounds are narrow: update.correction_low, correction_high"
            )
        }

    def _correct(self, batch: Batch, proximal_BT: Tensor) -> Correction:
        log_ratio_BT = sampler_log_ratio(proximal_BT, batch.rollout_logprobs_BT, batch.response_BT)
        return self._function(log_ratio_BT, batch.response_BT, self._bounds)
