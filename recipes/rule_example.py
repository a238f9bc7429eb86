"""REINFORCE with a batch-mean baseline and an exact KL: update.rule = recipes/rule_example.py:Reinforce"""

from dataclasses import replace

from pydantic import Field

from rlkl.batch import Batch, LossOutput, Signal, Signals
from rlkl.functional.reduce import masked, sequence_sum_weights
from rlkl.updates.base import PolicyUpdate
from rlkl.updates.settings import RuleSettings


class Reinforce(PolicyUpdate):
    class Settings(RuleSettings):
        kl_coef: float = Field(default=0.1, ge=0, description="Weight of KL(policy || reference).")

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({Signal.POLICY_LOGPROBS, Signal.KL_POLICY_TO_REFERENCE})

    def credit(self, batch: Batch) -> Batch:
        advantages_B = batch.rewards_B - batch.rewards_B.mean()
        return replace(batch, advantages_BT=advantages_B[:, None] * batch.response_BT)

    def loss(self, batch: Batch, signals: Signals) -> LossOutput:
        weights_BT = sequence_sum_weights(batch.response_BT, batch.denominators)
        policy_BT = masked(signals[Signal.POLICY_LOGPROBS], batch.response_BT)
        kl_BT = masked(signals[Signal.KL_POLICY_TO_REFERENCE], batch.response_BT)
        policy_gradient = -(weights_BT * batch.advantages_BT * policy_BT).sum()
        kl = self.settings.kl_coef * (weights_BT * kl_BT).sum()
        return LossOutput(
            loss=policy_gradient + kl,
            terms={"policy_gradient": policy_gradient.detach(), "kl": kl.detach()},
            metrics={"rule/praised_tokens": (batch.advantages_BT > 0).sum() / batch.denominators.tokens},
        )
