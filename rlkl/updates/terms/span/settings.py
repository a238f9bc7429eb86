"""The settings of the term ``span``. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlkl.updates.terms.settings import AnchoredSettings


class SpanSettings(AnchoredSettings):
    """Distance to a frozen model in the products of the distributions at neighbouring tokens of a span."""

    term: Literal["span"] = Field(default="span", description="The term.")
    break_ids: list[int] = Field(
        default_factory=list,
        description="Token ids between spans, such as those of punctuation; none: words, by the policy's tokenizer.",
    )

    @model_validator(mode="after")
    def _break_ids_are_token_ids(self) -> SpanSettings:
        if self.break_ids and min(self.break_ids) < 0:
            raise ValueError(f"break_ids = {self.break_ids}: a token id is 0 or more")
        return self
