"""The settings of the term ``rewording``. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from rlkl.updates.run_facts import RunFacts
from rlkl.updates.terms.settings import TermSettings

if TYPE_CHECKING:
    from rlkl.updates.base_settings import RuleSettings


class RewordingSettings(TermSettings):
    """KL between the answers to a prompt and to another wording of it."""

    term: Literal["rewording"] = Field(default="rewording", description="The term.")
    coef: float = Field(default=0.1, ge=0, description="Weight of the term in the loss.")
    column: str = Field(default="", description="The column of the data with another wording of each prompt.")

    @model_validator(mode="after")
    def _column_is_named(self) -> RewordingSettings:
        if not self.column:
            raise ValueError("column is not set: name the column of the data with another wording of each prompt")
        return self

    @property
    def wording_column(self) -> str:
        return self.column

    def added_sequences(self, trained: int) -> int:
        return trained

    def warnings(self, run: RunFacts, rule: RuleSettings) -> Iterator[str]:
        yield from super().warnings(run, rule)
        if (source := rule.selection(run)) is not None:
            yield (
                f"the term estimates a KL from completions that the policy sampled; with {source} it gets those that "
                "were picked by their rewards, so the estimate is biased"
            )
