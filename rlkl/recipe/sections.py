"""Recipe sections for model, data, sampling, learner, records and cluster. Rewards: `rlkl.recipe.reward_section`."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from rlkl.recipe.curriculum_section import CurriculumSection, Sampler, check_curriculum
from rlkl.schema import Section

_OWN_TEMPLATE_ARGUMENTS = (
    "conversation", "messages", "tokenize", "add_generation_prompt", "continue_final_message", "padding", "truncation",
    "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
)  # fmt: skip


def _template_arguments(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse arguments of ``apply_chat_template`` that rlkl sets itself."""
    own = sorted(value.keys() & set(_OWN_TEMPLATE_ARGUMENTS))
    if own:
        raise ValueError(
            f"rlkl sets {', '.join(own)} itself; expected variables that the chat template reads, such as "
            "enable_thinking"
        )
    return value


TemplateArguments = Annotated[dict[str, Any], AfterValidator(_template_arguments)]
"""Further arguments of the chat template by name."""


class RunSection(Section):
    """Name and folder of the run."""

    name: str = Field(
        default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the run and its folder."
    )
    dir: str | None = Field(default=None, description="Run folder; runs/<name> when left out.")


class LoraSection(Section):
    """Low-rank adapters (peft). The reference model is then the policy with its adapter off."""

    rank: int = Field(default=16, ge=1, description="Rank of the adapters.")
    alpha: float = Field(default=32.0, gt=0, description="Scale of the adapters (alpha / rank).")
    target_modules: list[str] | Literal["all-linear"] = Field(
        default="all-linear",
        description="Modules that get an adapter; embeddings and head only if the model does not tie them.",
    )


class ModelSection(Section):
    """The policy."""

    path: str = Field(
        description="Hugging Face name, a local folder, or a built-in base model such as task:arithmetic."
    )
    reference: str | None = Field(
        default=None,
        description="Model that the KL is measured to, written as path; left out: the policy as it starts.",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Precision of computing and publishing; the optimizer moves float32 weights."
    )
    lora: LoraSection | None = Field(default=None, description="Train low-rank adapters instead of all weights.")
    freeze_vision: bool = Field(
        default=False,
        description="Leave a vision-language model's vision tower and projector as they are, without adapters too.",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute activations in the backward pass to save memory."
    )

    @property
    def publishes_adapters(self) -> bool:
        """Whether the sampler gets the adapters as such: merged into bfloat16 weights, most of them would be lost."""
        return self.lora is not None and self.dtype != "float32"


class FrozenModelSection(Section):
    """A frozen model beside policy and reference. Rules and terms refer to it by its name."""

    path: str = Field(
        description="Hugging Face name, local folder, or built-in base model, of the policy's vocabulary."
    )


class DataSection(Section):
    """The source of the prompts."""

    source: str = Field(description="A .jsonl or .parquet file, a Hugging Face datasets name, or task:arithmetic.")
    subset: str | None = Field(default=None, description="Configuration name of a Hugging Face data set.")
    split: str = Field(default="train", description="Split of a Hugging Face data set.")
    prompt_column: str = Field(
        default="prompt", description="Column with the prompt: plain text or a list of chat messages."
    )
    image_column: str = Field(
        default="images",
        description="Column with a prompt's picture or list of pictures (vision-language models).",
    )
    min_pixels: int | None = Field(
        default=None,
        ge=1,
        description="Smaller pictures are enlarged to so many pixels; null: the model's own limit.",
    )
    max_pixels: int | None = Field(
        default=None, ge=1, description="Larger pictures are shrunk to so many pixels; null: the model's own limit."
    )
    chosen_column: str | None = Field(
        default=None,
        description="Column with the preferred answer: train on these pairs and sample nothing (rollout.workers: 0).",
    )
    rejected_column: str | None = Field(default=None, description="Column with the other answer of each pair.")
    as_chat: bool = Field(
        default=False,
        description="Plain text becomes a user's message, with its pictures at <image>, or before the text.",
    )
    system_prompt: str | None = Field(default=None, description="Put before chat messages as the system message.")
    chat_template_kwargs: TemplateArguments = Field(
        default_factory=dict,
        description="Further arguments of the chat template, such as enable_thinking: false of Qwen3.",
    )
    max_prompt_tokens: int = Field(default=512, ge=1, description="Longer prompts are dropped and counted.")
    max_bad_fraction: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Stop before training when more of the rows are empty, malformed or over-long.",
    )
    shuffle: bool = Field(default=True, description="Draw prompts in a new random order each epoch.")
    sampler: Sampler = Field(
        default="uniform",
        description="Prompts to draw: each once an epoch, or by earlier rewards (docs/choosing_prompts.md).",
    )
    curriculum: CurriculumSection | None = Field(
        default=None, description="Settings of sampler: pass_rate and bandit; null: the defaults."
    )

    @property
    def has_pairs(self) -> bool:
        """Whether each prompt brings a chosen and a rejected answer."""
        return self.chosen_column is not None

    @property
    def pixels(self) -> tuple[int | None, int | None]:
        """Smallest and largest number of pixels of a picture; None: by the model's own settings."""
        return self.min_pixels, self.max_pixels

    @model_validator(mode="after")
    def _pixels_in_order(self) -> DataSection:
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(
                f"min_pixels = {self.min_pixels} exceeds max_pixels = {self.max_pixels}; no picture can have both"
            )
        return self

    @model_validator(mode="after")
    def _both_answers(self) -> DataSection:
        if (self.chosen_column is None) != (self.rejected_column is None):
            raise ValueError("chosen_column and rejected_column go together: name both columns of answers, or neither")
        return self

    @model_validator(mode="after")
    def _sampler_can_learn(self) -> DataSection:
        check_curriculum(self.sampler, self.curriculum)
        if self.has_pairs and self.sampler != "uniform":
            raise ValueError(
                f"sampler = {self.sampler} learns from rewards, and stored pairs have none; leave it out, or leave "
                "chosen_column and rejected_column out to sample"
            )
        return self


class LearnerSection(Section):
    """Optimisation."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: cuda where the learner's machine has it."
    )
    gpus: float | None = Field(
        default=None,
        ge=0,
        description="GPUs that each rank reserves in Ray; left out: 1, or an equal part of the only GPU.",
    )
    ranks: int = Field(
        default=1, ge=1, description="Processes that share the learner's weights, optimizer and work, one on each GPU."
    )
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads of each rank; left out: the cores of its node, divided among them."
    )
    lr: float = Field(default=1e-6, ge=0, description="Peak learning rate of AdamW.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant",
        description="Learning rate after warm-up; it ends with the run, also if groups were dropped.",
    )
    warmup_steps: int = Field(default=0, ge=0, description="Optimizer steps over which the learning rate rises from 0.")
    final_lr_fraction: float = Field(
        default=0.0, ge=0, le=1, description="Where linear and cosine end, as a share of lr."
    )
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        default="adamw", description="adamw_8bit: moments of 8 bits instead of 32 (needs rlkl[8bit])."
    )
    offload: Literal["none", "optimizer"] = Field(
        default="none", description="optimizer: its state is in host memory between steps. No effect on a CPU."
    )
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's decoupled weight decay.")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW's first moment decay.")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="AdamW's second moment decay.")
    adam_eps: float = Field(default=1e-8, gt=0, description="AdamW's epsilon.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are scaled down to this global L2 norm.")
    on_fault: Literal["stop", "skip"] = Field(
        default="stop",
        description="After a loss, gradient or log-prob that is not finite: end the run, or skip the step.",
    )
    epochs: int = Field(default=1, ge=1, description="Passes over each batch.")
    minibatches: int = Field(
        default=1, ge=1, description="Optimizer steps per pass, at most one a group; whole groups stay together."
    )
    micro_batch_tokens: int = Field(
        default=8192, ge=1, description="Tokens per forward and backward pass, a group's prompt once (docs/packing.md)."
    )
    logits_chunk_tokens: int = Field(default=1024, ge=1, description="Tokens whose logits exist at one time.")
    track_reference_kl: bool = Field(
        default=False,
        description="Log KL to the reference even where the rule does not use it (keeps a frozen reference).",
    )


class WeightsSection(Section):
    """Publishing weights to the rollout workers, and proving that they arrived."""

    probe_prompts: int = Field(
        default=8, ge=1, description="Sequences on which engine and learner are compared each publish."
    )
    tolerance: float | None = Field(
        default=None,
        gt=0,
        description="Largest allowed log-prob difference; left out: 1e-3 in float32, 1 in bfloat16, more if large.",
    )
    transport: Literal["auto", "host", "group"] = Field(
        default="auto",
        description="host: through memory of the machines; group: broadcast from learner to engines (docs/weights.md).",
    )


class TrackingSection(Section):
    """The records of the run."""

    wandb: Literal["offline", "online", "off"] = Field(default="offline", description="Weights & Biases mode.")
    project: str = Field(default="rlkl", description="W&B project.")
    entity: str | None = Field(default=None, description="W&B team or user.")
    group: str | None = Field(default=None, description="Group of runs in W&B and trackio, such as a sweep's name.")
    arm: str | None = Field(
        default=None,
        description="Label by which dashboards average seeds; left out: the rule and a hash of the recipe.",
    )
    tags: list[str] = Field(default_factory=list, description="W&B tags beside rule, variant and model.")
    also: list[Literal["tensorboard", "trackio"]] = Field(
        default_factory=list, description="Further places that show the records (docs/tracking.md)."
    )
    samples_every: int = Field(default=10, ge=1, description="Steps between two sample files and sample tables.")
    samples_kept: int = Field(
        default=32, ge=1, description="Rollouts in a W&B sample table; the parquet file keeps all."
    )
    similarity_pairs: int = Field(
        default=0, ge=0, description="Pairs of completions of different prompts compared each step; 0: no similarity."
    )
    hacking_watch: bool = Field(
        default=True, description="Warn when samples drift as those of a policy that hacks its reward do."
    )
    hacking_tolerance: float = Field(
        default=1.0, gt=0, description="Multiplies every limit of the hacking watch; 2 lets twice as much pass."
    )
    suspicious_kept: int = Field(
        default=16, ge=1, description="Samples kept for each signal of the hacking watch that sets in."
    )
    report: bool = Field(default=False, description="Write report.html into the run folder at the end of the run.")
    console: Literal["auto", "live", "plain"] = Field(
        default="auto", description="auto: live in a terminal, else plain lines."
    )


class CheckpointSection(Section):
    """Saving the whole state of a run."""

    every: int = Field(default=50, ge=1, description="Steps between two checkpoints; the last step always saves one.")
    keep: int = Field(default=2, ge=1, description="Checkpoints kept; older ones are deleted.")
    best: str | None = Field(
        default=None,
        description="Metric such as eval/gold or reward/mean: keep the policy of its largest value in best/ too.",
    )

    @field_validator("best")
    @classmethod
    def _larger_is_better(cls, value: str | None) -> str | None:
        group, slash, name = (value or "a/b").partition("/")
        if not (group and slash and name):
            raise ValueError("expected a metric, such as eval/gold, eval/mean or reward/mean")
        if (
            group in ("kl", "time", "loss")
            or name in ("kl", "length_mean", "truncated_fraction")
            or name.endswith("_se")
        ):
            raise ValueError("the policy of the largest value is kept, and of this metric more is not better")
        return value


class ClusterSection(Section):
    """Ray, and how long to wait for its actors."""

    address: str | None = Field(
        default=None, description="Ray cluster; left out: RAY_ADDRESS if set, else a local Ray of its own."
    )

    @property
    def resolved_address(self) -> str | None:
        """The cluster that the run uses: ``address``, or RAY_ADDRESS; None: the run starts a Ray on this machine."""
        return self.address or os.environ.get("RAY_ADDRESS") or None

    restarts: int = Field(
        default=0, ge=0, description="After the learner's death, go on from the newest checkpoint so many times."
    )
    start_timeout_s: float = Field(default=600.0, gt=0, description="Deadline for actors to start and load the model.")
    call_timeout_s: float = Field(default=1800.0, gt=0, description="Deadline for any one call to an actor.")
