"""The recipe's section on sampling."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rlkl.recipe.engine_sections import VllmSection, with_engine_settings
from rlkl.schema import Section

REJECTED_BATCHES = 50
"""Under ``schedule: stream`` the run stops if the rule rejects so many batches of groups for one step."""

_NEUTRAL = {"top_p": 1.0, "top_k": -1, "min_p": 0.0}
"""Settings of truncated sampling that do nothing. They are no keys of a recipe."""


class RolloutSection(Section):
    """Sampling from the policy."""

    engine: str = Field(default="vllm", description="vllm, hf (transformers generate), or package.module:Class.")
    workers: int = Field(
        default=1, ge=0, description="Rollout workers, each a Ray actor with its own engine; 0 for stored pairs only."
    )
    gpus_per_worker: float | None = Field(
        default=None,
        ge=0,
        description="GPUs per worker, fractions share one; left out: 1, or an equal part if there are too few GPUs.",
    )
    cpus_per_worker: int = Field(default=1, ge=1, description="CPUs that each worker reserves in Ray.")
    threads: int | None = Field(
        default=None,
        ge=1,
        description="CPU threads per worker; left out: the cores of its node, divided among the workers there.",
    )
    prompts_per_step: int = Field(default=32, ge=1, description="Prompts per training step.")
    samples_per_prompt: int = Field(default=8, ge=1, description="Completions per prompt (the group size).")
    max_new_tokens: int = Field(default=256, ge=1, description="A completion is cut off after this many tokens.")
    temperature: float = Field(
        default=1.0, gt=0, description="Sampling temperature; the learner's log-probs use the same."
    )
    stop: list[str] = Field(
        default_factory=list,
        description="Texts that end a completion: cut from the text that rewards get; the token ids keep them.",
    )
    max_rounds: int = Field(
        default=1, ge=1, description="Rounds of prompts drawn to fill a step when the rule drops groups; 1: no refill."
    )
    schedule: Literal["alternate", "one_step_off", "stream"] = Field(
        default="alternate",
        description="one_step_off, stream: sample the coming batches while the learner steps (docs/schedules.md).",
    )
    max_staleness: int = Field(
        default=2, ge=1, description="stream: no token is older than so many versions of the weights."
    )
    tensor_parallel: int = Field(
        default=1, ge=1, description="GPUs, or processes on a CPU, that share one worker's engine (vllm only)."
    )
    placement: Literal["separate", "colocated"] = Field(
        default="separate",
        description="colocated: engines sleep while the learner steps on the same GPUs (vllm only).",
    )
    vllm: VllmSection = Field(default_factory=lambda: VllmSection(), description="Settings of vLLM.")

    @field_validator("engine")
    @classmethod
    def _engine_has_a_known_form(cls, value: str) -> str:
        if value not in ("vllm", "hf") and ":" not in value:
            raise ValueError("expected vllm, hf, or package.module:Class")
        return value

    @field_validator("stop")
    @classmethod
    def _texts_that_can_be_found(cls, value: list[str]) -> list[str]:
        if "" in value:
            raise ValueError("an empty text would end every completion before its first token; leave it out")
        return value

    @model_validator(mode="after")
    def _only_vllm_reads_its_arguments(self) -> RolloutSection:
        if self.vllm.arguments and self.engine == "hf":
            raise ValueError(
                f"vllm sets {', '.join(self.vllm.arguments)}, but engine = hf reads no vLLM arguments; leave vllm out, "
                "or set engine: vllm"
            )
        return self

    @model_validator(mode="after")
    def _engine_can_be_spread(self) -> RolloutSection:
        for key, value, plain in (
            ("tensor_parallel", self.tensor_parallel, 1),
            ("placement", self.placement, "separate"),
        ):
            if value != plain and self.engine != "vllm":
                raise ValueError(f"{key} = {value} needs engine: vllm, not {self.engine}; expected {plain} here")
        return self

    @model_validator(mode="after")
    def _gpus_follow_from_the_engine(self) -> RolloutSection:
        gpus, size = self.gpus_per_worker, self.tensor_parallel
        if gpus and size > 1 and gpus != size:
            raise ValueError(
                f"gpus_per_worker = {gpus:g}, but the engine of a worker has tensor_parallel = {size} GPUs; leave "
                "gpus_per_worker out"
            )
        if gpus is not None and self.placement == "colocated":
            raise ValueError(
                f"gpus_per_worker = {gpus:g}, but with placement = colocated the engines use the learner's GPUs and "
                "reserve none; leave gpus_per_worker out"
            )
        return self

    @model_validator(mode="after")
    def _engines_sleep_only_in_turns(self) -> RolloutSection:
        if self.placement == "colocated" and self.schedule != "alternate":
            raise ValueError(
                f"schedule = {self.schedule} samples while the learner steps, but with placement = colocated the "
                "engines sleep then; set schedule: alternate, or placement: separate"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _keys_of_earlier_versions(cls, values: Any) -> Any:
        """Refuse truncated sampling, leave out its neutral values, and move the settings of vLLM to ``vllm``."""
        if not isinstance(values, dict):
            return values
        for key in values.keys() & _NEUTRAL.keys():
            if values[key] != _NEUTRAL[key]:
                raise ValueError(
                    f"{key} = {values[key]!r} is refused: sampling is never truncated. A token's sampling "
                    "probability would be its share of the kept tokens, the learner's is its share of the whole "
                    "vocabulary, so every importance ratio would be off by the kept mass. Lower rollout.temperature "
                    "instead"
                )
        return with_engine_settings({key: value for key, value in values.items() if key not in _NEUTRAL})
