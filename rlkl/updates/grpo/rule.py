"""Group Relative Policy Optimization (arXiv 2402.03300) and five variants of it; equations in README.md.

The completions of one prompt are compared with each other: the advantage of each is its reward relative to its group's.
The policy descends a surrogate of -advantage * ratio, where ratio = policy / proximal, plus ``kl_coef`` times a KL to
the reference. What differs between the variants is a row of `rlkl.updates.settings.GRPO_VARIANTS`.

Edge cases: a group of one and a group of equal rewards have zero advantage; an empty completion has no token to train,
but its reward counts in its group's baseline, and so does a truncated one's under ``mask_truncated``.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from rlkl.batch import Batch, Denominators, LossOutput
from rlkl.functional import advantages, reduce, surrogate
from rlkl.functional.kl import kl_policy_to_reference_k1
from rlkl.functional.reduce import masked
from rlkl.signals import Signal, Signals
from rlkl.types import Example, RolloutGroup
from rlkl.updates.base import PolicyUpdate
from rlkl.updates.correction import SamplerCorrection
from rlkl.updates.settings import Advantage, Aggregation, GrpoSettings, Ratio
from rlkl.updates.terms.kl import Kl
from rlkl.updates.terms.settings import KlSettings

ADVANTAGES: dict[Advantage, Callable[[Tensor, Tensor], Tensor]] = {
    "group_std": advantages.group_std_advantages,
    "group_mean": advantages.group_mean_advantages,
    "leave_one_out": advantages.leave_one_out_advantages,
}
LOG_RATIOS: dict[Ratio, surrogate.LogRatio] = {
    "token": surrogate.token_log_ratio,
    "sequence_mean": surrogate.sequence_mean_log_ratio,
    "sequence_sum": surrogate.sequence_sum_log_ratio,
}
WEIGHTS: dict[Aggregation, Callable[[Tensor, Denominators], Tensor]] = {
    "sequence_mean": reduce.sequence_mean_weights,
    "token_mean": reduce.token_mean_weights,
    "sequence_sum": reduce.sequence_sum_weights,
    "sequence_sum_over_limit": reduce.sequence_sum_over_limit_weights,
}


class Grpo(PolicyUpdate):
    """Advantages relative to the group; no value model."""

    rule: ClassVar[str] = "grpo"

    def __init__(self, settings: GrpoSettings) -> None:
        self.settings = settings
        self.choices = settings.choices()
        self.correction = SamplerCorrection(settings)
        self.kl = Kl(KlSettings(coef=settings.kl_coef, estimator=settings.estimator()), self._weights)

    @property
    def needs(self) -> frozenset[Signal]:
        needs = {Signal.POLICY_LOGPROBS, Signal.PROXIMAL_LOGPROBS}
        if self.settings.kl_coef > 0:
            needs.add(Signal.REFERENCE_LOGPROBS)
        return frozenset(needs)

    @property
    def reads_before_loss(self) -> frozenset[Signal]:
        in_reward = self.settings.kl_coef > 0 and self.settings.kl_placement == "reward"
        return frozenset({Signal.PROXIMAL_LOGPROBS, Signal.REFERENCE_LOGPROBS} if in_reward else ())

    def select(self, groups: Sequence[RolloutGroup]) -> list[Example]:
        """Return all rollouts; with ``drop_uniform_groups`` leave out groups whose rewards are all equal."""
        examples = super().select(groups)
        if not self.choices.drop_uniform_groups:
            return examples
        return [e for e in examples if len({rollout.reward for rollout in groups[e.group].rollouts}) > 1]

    def credit(self, batch: Batch) -> Batch:
        """Fill ``advantages_BT``; under ``mask_truncated`` also take truncated rows out of ``response_BT``.

        Count the denominators after this, over the remaining tokens.
        """
        rewards_B = batch.rewards_B
        if self.settings.kl_coef > 0 and self.settings.kl_placement == "reward":
            rewards_B = rewards_B - self.settings.kl_coef * self._sequence_kl_B(batch)
        response_BT = batch.response_BT
        if self.settings.mask_truncated:
            response_BT = response_BT & ~batch.truncated_B.unsqueeze(1)
        advantages_B = ADVANTAGES[self.choices.advantage](rewards_B, batch.group_B)
        return replace(batch, response_BT=response_BT, advantages_BT=masked(advantages_B.unsqueeze(1), response_BT))

    def _sequence_kl_B(self, batch: Batch) -> Tensor:
        """Estimate KL(policy || reference) of each sampled response, with the weights at the start of the step."""
        proximal_BT = masked(batch.signals[Signal.PROXIMAL_LOGPROBS], batch.response_BT)
        reference_BT = masked(batch.signals[Signal.REFERENCE_LOGPROBS], batch.response_BT)
        return kl_policy_to_reference_k1(proximal_BT, reference_BT).sum(dim=1)

    def _weights(self, batch: Batch) -> Tensor:
        """Return the weight ``[B, T]`` of each token's loss, by the variant's aggregation."""
        weights_BT = WEIGHTS[self.choices.aggregation](batch.response_BT, batch.denominators)
        return weights_BT * batch.weight_B.unsqueeze(1)

    def loss(self, batch: Batch, signals: Signals) -> LossOutput:
        """Sum ``policy`` and, with a KL in the loss, ``kl``. Metrics are fractions of the step's response tokens."""
        policy_BT = masked(signals[Signal.POLICY_LOGPROBS], batch.response_BT)
        policy = self._surrogate(batch, signals, policy_BT)
        loss_BT = self.correction.weighted(policy.loss_BT, batch, signals[Signal.PROXIMAL_LOGPROBS])
        terms = {"policy": (self._weights(batch) * loss_BT).sum()}
        if self.settings.kl_coef > 0 and self.settings.kl_placement == "loss":
            terms["kl"] = self.kl.loss(batch, signals.merged(Signals({Signal.POLICY_LOGPROBS: policy_BT})))
        tokens = batch.denominators.tokens
        return LossOutput(
            loss=torch.stack(list(terms.values())).sum(),
            terms={name: term.detach() for name, term in terms.items()},
            metrics={
                "update/clip_fraction_low": policy.clipped_low_BT.sum() / tokens,
                "update/clip_fraction_high": policy.clipped_high_BT.sum() / tokens,
            },
        )

    def start_metrics(self, batch: Batch) -> dict[str, float]:
        return self.correction.metrics(batch, batch.signals[Signal.PROXIMAL_LOGPROBS])

    def alarms(self, records: Sequence[Mapping[str, float]]) -> dict[str, str]:
        return self.correction.alarms(records)

    def _surrogate(self, batch: Batch, signals: Signals, policy_BT: Tensor) -> surrogate.Surrogate:
        proximal_BT = signals[Signal.PROXIMAL_LOGPROBS]
        advantages_BT = masked(batch.advantages_BT, batch.response_BT)
        log_ratio_BT = LOG_RATIOS[self.choices.ratio](policy_BT, proximal_BT, batch.response_BT)
        lower = 0.0 if self.choices.clip_low is None else 1 - self.choices.clip_low
        upper = math.inf if self.choices.clip_high is None else 1 + self.choices.clip_high
        if self.choices.surrogate == "truncated_weight":
            return surrogate.truncated_weight_surrogate(
                log_ratio_BT, policy_BT, advantages_BT, lower=lower, upper=upper
            )
        return surrogate.clipped_surrogate(log_ratio_BT, advantages_BT, lower=lower, upper=upper)
