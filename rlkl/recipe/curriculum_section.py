"""Recipe section for draws of prompts that depend on earlier rewards (docs/choosing_prompts.md)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlkl.schema import Section

Sampler = Literal["uniform", "pass_rate", "bandit"]

_OF_BUCKETS = ("bucket_column", "loss", "discount")


class CurriculumSection(Section):
    """Settings of ``data.sampler``."""

    floor: float = Field(
        default=0.1, gt=0, le=1, description="Share of draws that are uniform: over prompts, or over buckets."
    )
    passes_at: float = Field(
        default=1.0, description="A completion passes with at least this reward, before normalisation."
    )
    bucket_column: str | None = Field(
        default=None, description="bandit: column whose values are the buckets; many numbers are cut into eight."
    )
    loss: Literal["kl", "square"] = Field(
        default="kl", description="bandit: inverse-gap weighting for the KL loss (FastCB) or square loss (SquareCB)."
    )
    discount: float = Field(default=0.99, gt=0, le=1, description="bandit: weight of what a step showed, a step later.")


def check_curriculum(sampler: Sampler, curriculum: CurriculumSection | None) -> None:
    """Raise ValueError for settings that the sampler lacks or does not use."""
    if sampler == "uniform":
        if curriculum is not None:
            raise ValueError("curriculum has no effect with sampler = uniform; set sampler: pass_rate or bandit")
        return
    column = None if curriculum is None else curriculum.bucket_column
    if sampler == "bandit" and column is None:
        raise ValueError(
            "sampler = bandit draws buckets of prompts, and none are named; set curriculum: {bucket_column: COLUMN}"
        )
    if sampler == "pass_rate" and curriculum is not None:
        usual = CurriculumSection()
        if idle := [key for key in _OF_BUCKETS if getattr(curriculum, key) != getattr(usual, key)]:
            raise ValueError(
                f"sampler = pass_rate draws prompts, not buckets, so curriculum.{idle[0]} has no effect; leave it out, "
                "or set sampler: bandit"
            )
