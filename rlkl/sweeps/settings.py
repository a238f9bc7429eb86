"""The keys of a sweep file."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rlkl.errors import did_you_mean
from rlkl.schema import Section

FIRST_SEED = 1
"""``seeds: 5`` are the seeds 1 to 5, so that seed 0, on which recipes are tried out, is left for the selection."""


class SeededSection(Section):
    """A section with ``seeds``."""

    @field_validator("seeds", mode="before", check_fields=False)
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return list(range(FIRST_SEED, FIRST_SEED + value)) if type(value) is int and value > 0 else value

    @field_validator("seeds", mode="after", check_fields=False)
    @classmethod
    def _are_distinct(cls, seeds: list[int] | None) -> list[int] | None:
        if seeds is not None and (not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds)):
            raise ValueError(
                f"seeds = {seeds}: expected a list of different whole numbers >= 0, or how many as a number >= 1; runs "
                "of one seed are equal and count once"
            )
        return seeds


class SweepArmSection(Section):
    """One thing that is compared: a recipe, the keys that vary, and the keys that are set."""

    recipe: str = Field(description="A recipe file, or the name of one in recipes/.")
    vary: dict[str, list[Any]] = Field(
        default_factory=dict, description="Keys of the recipe, each with a list of values: the axes of the grid."
    )
    set: dict[str, Any] = Field(default_factory=dict, description="Keys of the recipe with one value for all points.")

    @model_validator(mode="after")
    def _axes_have_values(self) -> SweepArmSection:
        for key, values in self.vary.items():
            if not values:
                raise ValueError(f"vary.{key} = []: expected a list with a value for each point")
            if key in self.set:
                raise ValueError(f"{key} is in vary and in set; remove one of them")
            if key in ("seed", "run", "run.name", "run.dir"):
                raise ValueError(f"vary.{key}: the sweep sets it itself; seeds go into seeds, select or final")
        return self


class SelectSection(SeededSection):
    """Choosing one point of each arm on seeds of their own."""

    seeds: list[int] = Field(description="Seeds of the selection: a list, or how many.")
    by: str = Field(description="The figure to maximise: a metric, or eval/NAME of the evaluation.")
    last: int = Field(default=10, ge=1, description="Mean over so many of the last steps or evaluations of a run.")


class FinalSection(SeededSection):
    """Running the chosen points."""

    seeds: list[int] = Field(description="Seeds of the final runs: a list, or how many. None of them selects.")


class EvaluateDataSection(Section):
    """The prompts of the evaluation."""

    source: str = Field(description="As in data.source.")


class EvaluateSection(Section):
    """`rlkl eval` for each finished run and for the untrained models: the same prompts and draws for all."""

    data: EvaluateDataSection = Field(description="The prompts; best ones that no run trains on.")
    samples: int = Field(default=8, ge=1, description="Completions of each prompt.")
    seed: int = Field(default=99, ge=0, description="Seed of the draws.")
    limit: int | None = Field(default=None, ge=1, description="At most so many prompts; left out: as `rlkl eval`.")
    max_new_tokens: int | None = Field(
        default=None, ge=1, description="Longest completion; left out: the longest of all arms, the same for all."
    )
    engine: Literal["vllm", "hf"] | None = Field(
        default=None, description="The engine; left out: the one of the first arm."
    )
    rewards: list[str] = Field(
        default_factory=list, description="Reward functions; left out: rewards and monitors of the first arm with any."
    )
    set: dict[str, Any] = Field(default_factory=dict, description="Further keys of `rlkl eval` with their values.")


class SweepSection(SeededSection):
    """A whole sweep."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the sweep and its folder.")
    dir: str | None = Field(default=None, description="Folder of the sweep; runs/<name> when left out.")
    baseline: str | None = Field(default=None, description="The arm that the others are compared with.")
    steps: int | None = Field(default=None, ge=1, description="Steps of every run; left out: as each recipe has it.")
    set: dict[str, Any] = Field(default_factory=dict, description="Keys of the recipe with one value for all arms.")
    arms: dict[str, SweepArmSection] = Field(min_length=1, description="What is compared, by name.")
    seeds: list[int] | None = Field(
        default=None, description="Seeds of every point, without a selection: a list, or how many."
    )
    select: SelectSection | None = Field(default=None, description="Left out: every point gets all seeds.")
    final: FinalSection | None = Field(default=None, description="The seeds of the chosen points.")
    evaluate: EvaluateSection | None = Field(default=None, description="Left out: training metrics only.")

    @model_validator(mode="after")
    def _seeds_fit(self) -> SweepSection:
        if self.select is None and self.final is None:
            if self.seeds is None:
                raise ValueError("no seeds: give seeds (a list, or how many), or select and final with seeds of theirs")
        elif self.seeds is not None:
            raise ValueError("seeds is for sweeps without a selection; with select, the seeds are in select and final")
        elif self.select is None or self.final is None:
            raise ValueError("select and final go together: select chooses the points that final runs")
        elif shared := sorted({*self.select.seeds} & {*self.final.seeds}):
            raise ValueError(
                f"final.seeds and select.seeds share {shared}: a point chosen on a seed looks better on that seed than "
                "it is. Choose other seeds for one of them"
            )
        return self

    @model_validator(mode="after")
    def _baseline_is_an_arm(self) -> SweepSection:
        if self.baseline is not None and self.baseline not in self.arms:
            raise ValueError(f"baseline = {self.baseline!r} is no arm; {did_you_mean(self.baseline, self.arms)}")
        return self

    @model_validator(mode="after")
    def _select_by_an_evaluation(self) -> SweepSection:
        if self.select is not None and self.select.by.startswith("eval/") and self.evaluate is None:
            raise ValueError(
                f"select.by = {self.select.by} needs an evaluation; add the section evaluate, or select by a metric of "
                "training such as reward/mean"
            )
        return self
