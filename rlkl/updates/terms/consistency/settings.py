"""The settings of the term ``consistency``. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from rlkl.updates.run_facts import RunFacts
from rlkl.updates.terms.settings import TermSettings

if TYPE_CHECKING:
    from rlkl.updates.base_settings import RuleSettings


class ConsistencySettings(TermSettings):
    """KL between the answers to a picture and to a noisy copy of it."""

    term: Literal["consistency"] = Field(default="consistency", description="The term.")
    coef: float = Field(default=0.1, ge=0, description="Weight of the term in the loss.")
    noise_std: float = Field(
        default=0.1, ge=0, description="Standard deviation of the noise; the range from black to white is 1."
    )

    def warnings(self, run: RunFacts, rule: RuleSettings) -> Iterator[str]:
        yield from super().warnings(run, rule)
        if self.noise_std == 0:
            yield "noise_std = 0: both pictures are equal, so the term does nothing. Leave it out, or set noise_std"
        if run.has_pairs or run.samples_ahead or rule.selection(run) is not None:
            yield (
                "the term estimates a KL from tokens that the policy sampled, and this run also trains on others "
                "(stored, picked by their rewards, or of an older policy), so the estimate is biased"
            )
