"""The settings of the term ``masked_kl``. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from rlkl.updates.run_facts import RunFacts
from rlkl.updates.terms.masked_kl.masks import check_masks, warnings_about_masks
from rlkl.updates.terms.settings import AnchoredSettings, Direction

if TYPE_CHECKING:
    from rlkl.updates.base_settings import RuleSettings


class MaskedKlSettings(AnchoredSettings):
    """Exact KL to a frozen model at some of the response's tokens, over some ids of the vocabulary."""

    term: Literal["masked_kl"] = Field(default="masked_kl", description="The term.")
    direction: Direction = Field(
        default="model_to_policy", description="KL(policy || model), or KL(model || policy), which covers the model."
    )
    top_k: int | None = Field(
        default=None, ge=1, description="Over the model's k likeliest tokens and a tail; null: the whole vocabulary."
    )
    token_ids: list[int] = Field(default_factory=list, description="Token ids of the mask.")
    keep: Literal["others", "named"] = Field(
        default="others", description="Count the KL at all other tokens, or at the named ones only."
    )
    vocabulary_ids: list[int] = Field(default_factory=list, description="Token ids of the mask over the vocabulary.")
    vocabulary_keep: Literal["others", "named"] = Field(
        default="others", description="Count all other ids of the vocabulary, or the named ones only."
    )
    renormalise: bool = Field(
        default=True, description="Divide by the sum over the counted ids, so that it is a KL; false: as the paper."
    )

    @model_validator(mode="after")
    def _masks_name_tokens(self) -> MaskedKlSettings:
        check_masks(self)
        return self

    @property
    def default_name(self) -> str:
        return f"masked_kl_{self.to}"

    def warnings(self, run: RunFacts, rule: RuleSettings) -> Iterator[str]:
        yield from super().warnings(run, rule)
        yield from warnings_about_masks(self)
