"""Recipe section for the evaluation on held-out prompts."""

from __future__ import annotations

from pydantic import Field, model_validator

from rlkl.recipe.reward_section import RewardSection
from rlkl.recipe.sections import DataSection
from rlkl.schema import Section


class EvalDataSection(Section):
    """The held-out prompts. Keys that are left out, and all other keys of ``data``, have the values of ``data``."""

    source: str | None = Field(default=None, description="As data.source: a file, a data set, or task:arithmetic/test.")
    subset: str | None = Field(default=None, description="As data.subset; not taken from data for another source.")
    split: str | None = Field(
        default=None, description="As data.split, such as test; not taken from data for another source."
    )
    prompt_column: str | None = Field(default=None, description="As data.prompt_column.")

    @model_validator(mode="after")
    def _names_data(self) -> EvalDataSection:
        if self.source is None and self.subset is None and self.split is None:
            raise ValueError(
                "eval.data names no data of its own, so the run would be evaluated on the prompts that it trains on; "
                "set source, subset or split"
            )
        return self

    def within(self, data: DataSection) -> DataSection:
        """Return the whole section: keys that are left out come from ``data``. Every row is taken once, in order."""
        own = {name: value for name, value in self.model_dump().items() if value is not None}
        of_source = ("subset", "split") if self.source not in (None, data.source) else ()
        defaults = {name: DataSection.model_fields[name].default for name in of_source}
        in_order = {"shuffle": False, "sampler": "uniform", "curriculum": None}
        pairs = {"chosen_column": None, "rejected_column": None}
        return data.model_copy(update={**defaults, **pairs, **own, **in_order})


class EvalSection(Section):
    """Evaluation of the policy on held-out prompts, before the first step, after the last, and in between."""

    every: int = Field(default=20, ge=1, description="Steps between two evaluations.")
    data: EvalDataSection = Field(description="The held-out prompts.")
    samples: int = Field(default=4, ge=1, description="Completions sampled for each prompt.")
    temperature: float = Field(
        default=1.0, gt=0, description="Their temperature; eval/kl is measured at 1 only, the policy as it is."
    )
    greedy: bool = Field(default=True, description="Also take the most probable token each time, once a prompt.")
    limit: int = Field(
        default=512, ge=1, description="Most prompts; of more rows, a choice by their ids that is always the same."
    )
    rewards: list[RewardSection] = Field(
        default_factory=list, description="Rewards and monitors of the evaluation; left out: the recipe's."
    )
