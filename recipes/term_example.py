"""Keep log-probs of sampled tokens above a floor: update.terms: [{term: recipes/term_example.py:Floor, floor: -5}]"""

from pydantic import Field
from torch import Tensor

from rlkl.batch import Batch
from rlkl.functional.reduce import masked, token_mean_weights
from rlkl.signals import Signal, Signals
from rlkl.updates.terms.base import Term
from rlkl.updates.terms.settings import TermSettings


class Floor(Term):
    class Settings(TermSettings):
        floor: float = Field(default=-5.0, le=0, description="Log-prob (nats) below which a token costs something.")

    needs = frozenset({Signal.POLICY_LOGPROBS})

    def loss(self, batch: Batch, signals: Signals) -> Tensor:
        policy_BT = masked(signals[Signal.POLICY_LOGPROBS], batch.response_BT)
        weights_BT = token_mean_weights(batch.response_BT, batch.denominators)
        return self.settings.coef * (weights_BT * (self.settings.floor - policy_BT).relu()).sum()
