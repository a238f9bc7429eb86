"""Proximal Policy Optimization (arXiv 1707.06347) with generalized advantages (arXiv 1506.02438); see README.md.

Each token is an action. It earns -kl_coef * log(proximal / reference) and the rewards given to it by name; the last one
besides what is left of the sequence's reward.
A critic values the state before each token; the policy descends the clipped surrogate of the generalized advantages,
the critic a clipped squared loss to the lambda-returns. Without a critic all values are zero, and with lambda = 1 the
advantage is the sum of the rewards to come: REINFORCE.

Edge cases: an empty completion has no token that could earn its reward and is left out; a truncated completion is taken
for a finished one, without a bootstrapped value.

Shapes: B sequences, T tokens, H hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from rlkl.batch import Batch, LossOutput
from rlkl.errors import RecipeError
from rlkl.functional import advantages, reduce, surrogate, values
from rlkl.functional.kl import AdaptiveKl, kl_policy_to_reference_k1
from rlkl.functional.reduce import masked
from rlkl.signals import Signal, Signals
from rlkl.updates.base import HeadInput, Heads, ModelShape, PolicyUpdate
from rlkl.updates.correction import SamplerCorrection
from rlkl.updates.settings import PpoSettings


class ValueHead(Heads):
    """One linear map of the policy's last hidden state; every value starts at 0."""

    reads = HeadInput.POLICY_HIDDEN

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.output = _zero_output(hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(x.float())


class Critic(Heads):
    """A transformer of its own that starts from the policy's weights, and a linear output; values start at 0."""

    reads = HeadInput.TOKENS

    def __init__(self, model: ModelShape) -> None:
        super().__init__()
        # Left in evaluation mode, so that no dropout parts the values of a step's start from those of its passes.
        self.backbone: Any = model.load_copy().base_model.eval()
        self.output = _zero_output(model.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        hidden_BTH = self.backbone(input_ids=x, use_cache=False).last_hidden_state
        # The state before token t is at position t - 1.
        return pad(self.output(hidden_BTH.float()[:, :-1]), (0, 0, 1, 0))


def _zero_output(hidden_size: int) -> nn.Linear:
    output = nn.Linear(hidden_size, 1)
    nn.init.zeros_(output.weight)
    nn.init.zeros_(output.bias)
    return output


class Ppo(PolicyUpdate):
    """Clipped surrogate, value function, KL in the reward."""

    rule: ClassVar[str] = "ppo"

    def __init__(self, settings: PpoSettings) -> None:
        self.settings = settings
        self.correction = SamplerCorrection(settings)
        self._steering = AdaptiveKl(
            value=settings.kl_coef,
            target=settings.kl_target or math.inf,
            horizon=settings.kl_horizon,
            gain=settings.kl_gain,
        )

    @property
    def kl_coef(self) -> float:
        """The coefficient now."""
        return self._steering.coefficient

    @property
    def needs(self) -> frozenset[Signal]:
        needs = {Signal.POLICY_LOGPROBS, Signal.PROXIMAL_LOGPROBS}
        if self.settings.kl_coef > 0:
            needs.add(Signal.REFERENCE_LOGPROBS)
        if self.settings.critic != "none":
            needs |= {Signal.HEADS, Signal.PROXIMAL_HEADS}
        return frozenset(needs)

    @property
    def reads_before_loss(self) -> frozenset[Signal]:
        in_reward = {Signal.PROXIMAL_LOGPROBS, Signal.REFERENCE_LOGPROBS} if self.settings.kl_coef > 0 else set()
        values = {Signal.PROXIMAL_HEADS} if self.settings.critic != "none" else set()
        return frozenset(in_reward | values)

    def check_model(self, *, is_multimodal: bool) -> None:
        if is_multimodal and self.settings.critic == "model":
            raise RecipeError(
                "update.critic = 'model' is a model of its own that reads token ids only, so it cannot value an answer "
                "about a picture, and model.path is a vision-language model. Set update.critic = head, which reads the "
                "policy's hidden states, or none"
            )

    def build_heads(self, model: ModelShape) -> Heads | None:
        match self.settings.critic:
            case "head":
                heads: Heads = ValueHead(model.hidden_size)
            case "model":
                heads = Critic(model)
            case "none":
                return None
        heads.lr_scale = self.settings.value_lr_scale
        return heads

    def credit(self, batch: Batch) -> Batch:
        """Fill ``advantages_BT`` and ``returns_BT``; whitening sees the whole batch."""
        values_BT = self._values_BT(batch, batch.signals, Signal.PROXIMAL_HEADS)
        advantages_BT = advantages.generalized_advantages(
            self._rewards_BT(batch),
            values_BT,
            batch.response_BT,
            discount=self.settings.discount,
            gae_lambda=self.settings.gae_lambda,
        )
        returns_BT = advantages_BT + values_BT
        if self.settings.whiten:
            advantages_BT = advantages.whitened(advantages_BT, batch.response_BT)
        return replace(batch, advantages_BT=advantages_BT, returns_BT=returns_BT)

    def _rewards_BT(self, batch: Batch) -> Tensor:
        """Return the reward of each response token: its own, minus its KL penalty.

        The last token also gets the rest of the sequence's reward.
        """
        later_BT = batch.response_BT.flip(1).cumsum(1).flip(1)
        last_BT = batch.response_BT & (later_BT == 1)
        rewards_BT = masked(batch.rewards_B.unsqueeze(1), last_BT)
        if batch.token_rewards_BT is not None:
            own_BT = masked(batch.token_rewards_BT, batch.response_BT)
            rewards_BT = rewards_BT + own_BT - masked(own_BT.sum(dim=1, keepdim=True), last_BT)
        if self.settings.kl_coef == 0:
            return rewards_BT
        proximal_BT = masked(batch.signals[Signal.PROXIMAL_LOGPROBS], batch.response_BT)
        reference_BT = masked(batch.signals[Signal.REFERENCE_LOGPROBS], batch.response_BT)
        return rewards_BT - self.kl_coef * kl_policy_to_reference_k1(proximal_BT, reference_BT)

    def _values_BT(self, batch: Batch, signals: Signals, signal: Signal) -> Tensor:
        if self.settings.critic == "none":
            return torch.zeros_like(batch.advantages_BT)
        return masked(signals[signal][..., 0], batch.response_BT)

    def batch_metrics(self, batch: Batch) -> dict[str, float]:
        metrics = {"update/kl_coef": self.kl_coef, "update/trained_sequences": float(batch.denominators.sequences)}
        if self.settings.critic != "none":
            values_BT = self._values_BT(batch, batch.signals, Signal.PROXIMAL_HEADS)
            metrics["update/value_explained_variance"] = values.explained_variance(
                values_BT, batch.returns_BT, batch.response_BT
            )
        return metrics

    def start_metrics(self, batch: Batch) -> dict[str, float]:
        return self.correction.metrics(batch, batch.signals[Signal.PROXIMAL_LOGPROBS])

    def alarms(self, records: Sequence[Mapping[str, float]]) -> dict[str, str]:
        return self.correction.alarms(records)

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Steer the coefficient by the KL that this step's samples showed."""
        if self.settings.kl_target is not None:
            sequences = int(metrics["update/trained_sequences"])
            self._steering = self._steering.updated(metrics["kl/policy_to_reference"], sequences)

    def state(self) -> dict[str, float]:
        return {"kl_coef": self._steering.value, "kl_error": self._steering.error}

    def load_state(self, state: Mapping[str, float]) -> None:
        self._steering = replace(self._steering, value=state["kl_coef"], error=state["kl_error"])

    def loss(self, batch: Batch, signals: Signals) -> LossOutput:
        """Return terms ``policy`` and, with a critic, ``value``: means over the step's response tokens."""
        policy_BT = masked(signals[Signal.POLICY_LOGPROBS], batch.response_BT)
        mean_BT = reduce.token_mean_weights(batch.response_BT, batch.denominators)
        weight_BT = mean_BT * batch.weight_B.unsqueeze(1)
        log_ratio_BT = surrogate.token_log_ratio(policy_BT, signals[Signal.PROXIMAL_LOGPROBS], batch.response_BT)
        policy = surrogate.clipped_surrogate(
            log_ratio_BT, batch.advantages_BT, lower=1 - self.settings.clip, upper=1 + self.settings.clip
        )
        loss_BT = self.correction.weighted(policy.loss_BT, batch, signals[Signal.PROXIMAL_LOGPROBS])
        terms = {"policy": (weight_BT * loss_BT).sum()}
        metrics = {
            "update/clip_fraction_low": (mean_BT * policy.clipped_low_BT).sum(),
            "update/clip_fraction_high": (mean_BT * policy.clipped_high_BT).sum(),
        }
        if self.settings.critic != "none":
            value = self._value_loss(batch, signals)
            terms["value"] = self.settings.value_coef * (weight_BT * value.loss_BT).sum()
            metrics["update/value_clip_fraction"] = (mean_BT * value.clipped_BT).sum()
        return LossOutput(
            loss=torch.stack(list(terms.values())).sum(),
            terms={name: term.detach() for name, term in terms.items()},
            metrics=metrics,
        )

    def _value_loss(self, batch: Batch, signals: Signals) -> values.ValueLoss:
        values_BT = self._values_BT(batch, signals, Signal.HEADS)
        if self.settings.value_clip is None:
            return values.squared_value_loss(values_BT, batch.returns_BT)
        proximal_BT = self._values_BT(batch, signals, Signal.PROXIMAL_HEADS)
        return values.clipped_value_loss(values_BT, proximal_BT, batch.returns_BT, clip=self.settings.value_clip)
