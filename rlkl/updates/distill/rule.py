"""On-policy distillation: the policy samples, a frozen teacher scores the same tokens; equations in README.md.

As a loss, the exact KL between the next-token distributions of policy and teacher on the policy's samples is descended
(GKD, arXiv 2306.13649). As a reward, log(teacher / policy) of each sampled token is its advantage in PPO's clipped
surrogate; the expected gradient is that of KL(policy || teacher), token by token.

With ``jsd_beta`` the loss is the generalised Jensen-Shannon divergence of the two instead. With ``on_policy_fraction``
below 1 stored answers take the place of some samples; all tokens of the step then have one weight, whoever wrote them.

With ``corrections`` the teacher's token takes the place of a sample's worst error, and the policy samples on from there
(`rlkl.training.correcting`); the loss is the same.

Edge cases: a teacher equal to the policy gives no gradient; an empty completion trains nothing. Rewards act only
through ``reward_coef``, and a filter may pick completions by them.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from rlkl.batch import Batch, LossOutput
from rlkl.functional.advantages import group_std_advantages
from rlkl.functional.divergences import JensenShannon
from rlkl.functional.reduce import masked
from rlkl.functional.surrogate import clipped_surrogate, token_log_ratio
from rlkl.signals import Signal, Signals
from rlkl.types import Example, RolloutGroup
from rlkl.updates.base import Heads, ModelShape, PolicyUpdate, SampleCorrection
from rlkl.updates.correction import SamplerCorrection
from rlkl.updates.distill.gate import Gate, window_metrics, window_of
from rlkl.updates.distill.settings import DistillSettings
from rlkl.updates.distill.stored import with_stored_answers
from rlkl.updates.terms.kl import Kl, token_mean
from rlkl.updates.terms.settings import KlSettings


class Distill(PolicyUpdate):
    """KL to a teacher on the policy's own samples; needs no reward, no reference and no value model."""

    rule: ClassVar[str] = "distill"

    def __init__(self, settings: DistillSettings) -> None:
        self.settings = settings
        exact = KlSettings(coef=1.0, to=settings.teacher, direction=settings.direction, top_k=settings.top_k)
        self.kl = Kl(exact)
        self.correction = SamplerCorrection(settings)
        self.teacher = Signal("logprobs", settings.teacher, moment="step_start")

    @property
    def needs(self) -> frozenset[Signal]:
        if self.settings.placement == "loss":
            return frozenset(
                {self.divergence} if self.settings.gate_tokens is None else {self.divergence, Signal.HEADS}
            )
        return frozenset({Signal.POLICY_LOGPROBS, Signal.PROXIMAL_LOGPROBS, self.teacher})

    @property
    def divergence(self) -> Signal:
        """The signal that ``placement = loss`` descends."""
        settings = self.settings
        if settings.jsd_beta is not None:
            return Signal("divergence", settings.teacher, by=JensenShannon(settings.jsd_beta, settings.top_k))
        if settings.kept_mass is not None:
            return Signal("divergence", settings.teacher, by=window_of(settings))
        return self.kl.signal

    def build_heads(self, model: ModelShape) -> Heads | None:
        return None if self.settings.gate_tokens is None else Gate(model, self.settings)

    def select(self, groups: Sequence[RolloutGroup]) -> list[Example]:
        """Return all rollouts, a share of them replaced by stored answers."""
        return with_stored_answers(super().select(groups), self.settings.on_policy_fraction, self.seed)

    @property
    def sample_correction(self) -> SampleCorrection | None:
        """The correction of samples (SCRG, arXiv 2407.10068), if the settings ask for one."""
        settings = self.settings
        if not settings.corrections:
            return None
        return SampleCorrection(teacher=settings.teacher, rounds=settings.corrections, direction=settings.direction)

    def token_columns(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the origin of each token, if samples are corrected; the numbers are those of `rlkl.types`."""
        if not self.settings.corrections:
            return {}
        origins_BT = torch.zeros(batch.response_BT.shape) if batch.provenance_BT is None else batch.provenance_BT
        return {"provenance": origins_BT}

    def credit(self, batch: Batch) -> Batch:
        """Fill ``advantages_BT``; only with ``placement = reward``."""
        if self.settings.placement == "loss":
            return batch
        limit = self.settings.max_log_ratio
        advantages_BT = self._log_ratio(batch).clamp(-limit, limit)
        if self.settings.reward_coef > 0:
            of_rewards_B = group_std_advantages(batch.rewards_B, batch.group_B)
            advantages_BT = advantages_BT + self.settings.reward_coef * of_rewards_B.unsqueeze(1)
        return replace(batch, advantages_BT=masked(advantages_BT, batch.response_BT))

    def batch_metrics(self, batch: Batch) -> dict[str, float]:
        if self.settings.placement == "loss":
            return {}
        log_ratio_BT, tokens = self._log_ratio(batch), max(int(batch.response_BT.sum()), 1)
        cut = (log_ratio_BT.abs() > self.settings.max_log_ratio).sum()
        return {"distill/kl": -float(log_ratio_BT.sum()) / tokens, "distill/cut_fraction": float(cut) / tokens}

    def _log_ratio(self, batch: Batch) -> Tensor:
        """Return log(teacher / policy) ``[B, T]`` with the weights of the step's start, zero outside the response."""
        teacher_BT = masked(batch.signals[self.teacher], batch.response_BT)
        return teacher_BT - masked(batch.signals[Signal.PROXIMAL_LOGPROBS], batch.response_BT)

    def loss(self, batch: Batch, signals: Signals) -> LossOutput:
        """Return the term ``distill``, or with ``placement = reward`` the term ``policy``."""
        if self.settings.placement == "loss":
            return self._descended(batch, signals)
        proximal_BT = signals[Signal.PROXIMAL_LOGPROBS]
        policy_BT = masked(signals[Signal.POLICY_LOGPROBS], batch.response_BT)
        log_ratio_BT = token_log_ratio(policy_BT, proximal_BT, batch.response_BT)
        advantages_BT = masked(batch.advantages_BT, batch.response_BT)
        clip = self.settings.clip
        policy = clipped_surrogate(log_ratio_BT, advantages_BT, lower=1 - clip, upper=1 + clip)
        loss = (token_mean(batch) * self.correction.weighted(policy.loss_BT, batch, proximal_BT)).sum()
        tokens = batch.denominators.tokens
        return LossOutput(
            loss=loss,
            terms={"policy": loss.detach()},
            metrics={
                "update/clip_fraction_low": policy.clipped_low_BT.sum() / tokens,
                "update/clip_fraction_high": policy.clipped_high_BT.sum() / tokens,
            },
        )

    def _descended(self, batch: Batch, signals: Signals) -> LossOutput:
        """Return the mean of the divergence over the step's response tokens, as loss and as metric."""
        has_window, tokens = self.settings.kept_mass is not None, batch.denominators.tokens
        found = signals[self.divergence]
        nats_BT = masked(found[..., 0] if has_window else found, batch.response_BT)
        loss = (token_mean(batch) * nats_BT).sum()
        name = "distill/kl" if self.settings.jsd_beta is None else "distill/jsd"
        metrics = {name: nats_BT.detach().sum() / tokens}
        if has_window:
            metrics |= window_metrics(batch, signals, self.divergence)
        return LossOutput(loss=loss, terms={"distill": loss.detach()}, metrics=metrics)

    def start_metrics(self, batch: Batch) -> dict[str, float]:
        if self.settings.placement == "loss":
            return {}
        return self.correction.metrics(batch, batch.signals[Signal.PROXIMAL_LOGPROBS])

    def alarms(self, records: Sequence[Mapping[str, float]]) -> dict[str, str]:
        return self.correction.alarms(records)
