"""The recipes of ``rlkl reward-model`` and ``rlkl sft``: strict sections, read as those of ``rlkl train`` are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from reward_models.training.list_recipe import ListColumns, ListLosses, check_losses
from rlkl.recipe import DataSection, LoraSection, RunSection
from rlkl.recipe.sections import TemplateArguments
from rlkl.schema import Section


class StartSection(Section):
    """The model that training starts from."""

    path: str = Field(description="Hugging Face name, a local folder, or a built-in base model such as task:reviews.")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Computing precision; trained and saved weights are float32."
    )
    lora: LoraSection | None = Field(
        default=None, description="Train low-rank adapters, merged into the model before it is saved."
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute activations in the backward pass to save memory."
    )


class LearnerSection(Section):
    """Optimisation by AdamW."""

    epochs: int = Field(default=1, ge=1, description="Passes over the training rows.")
    max_steps: int | None = Field(
        default=None, ge=1, description="Stop after so many optimizer steps, if that is sooner."
    )
    batch_size: int = Field(default=64, ge=1, description="Rows per optimizer step.")
    micro_batch_size: int = Field(default=16, ge=1, description="Rows per forward and backward pass.")
    lr: float = Field(default=1e-5, gt=0, description="Peak learning rate.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="linear", description="Learning rate after warm-up; linear and cosine end at 0."
    )
    warmup_steps: int = Field(default=0, ge=0, description="Optimizer steps over which the learning rate rises from 0.")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's decoupled weight decay.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are scaled down to this global L2 norm.")
    device: Literal["auto", "cpu"] = Field(default="auto", description="auto: a GPU where there is one.")
    threads: int | None = Field(default=None, ge=1, description="CPU threads; left out: as torch decides.")
    log_every: int = Field(default=10, ge=1, description="Optimizer steps between two lines of training.jsonl.")

    @model_validator(mode="after")
    def _micro_batches_fill_a_batch(self) -> LearnerSection:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size = {self.batch_size} is no multiple of micro_batch_size = {self.micro_batch_size}; "
                "a step takes whole micro-batches"
            )
        return self


class RowsSection(Section):
    """The source of the rows, and limits that refuse some of them."""

    source: str = Field(
        description="A .jsonl or .parquet file, a Hugging Face datasets name, or rows such as task:reviews/pairs."
    )
    subset: str | None = Field(default=None, description="Configuration name of a Hugging Face data set.")
    split: str = Field(default="train", description="Split of a Hugging Face data set.")
    prompt_column: str = Field(
        default="prompt", description="Column with the prompt: plain text or a list of chat messages."
    )
    system_prompt: str | None = Field(default=None, description="Put before chat messages as the system message.")
    chat_template_kwargs: TemplateArguments = Field(
        default_factory=dict,
        description="Further arguments of the chat template, such as enable_thinking: false of Qwen3.",
    )
    max_prompt_tokens: int = Field(default=512, ge=1, description="Rows with a longer prompt are dropped and counted.")
    max_answer_tokens: int = Field(default=512, ge=1, description="Rows with a longer answer are dropped and counted.")
    max_bad_fraction: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Stop before training when more of the rows are empty, malformed or over-long.",
    )

    def prompts(self, *, chosen_column: str | None = None, rejected_column: str | None = None) -> DataSection:
        """Return the section as the reader of prompts takes it."""
        return DataSection(
            source=self.source,
            subset=self.subset,
            split=self.split,
            prompt_column=self.prompt_column,
            chosen_column=chosen_column,
            rejected_column=rejected_column,
            system_prompt=self.system_prompt,
            chat_template_kwargs=self.chat_template_kwargs,
            max_prompt_tokens=self.max_prompt_tokens,
            max_bad_fraction=self.max_bad_fraction,
            shuffle=False,
        )


class PairsSection(ListColumns, RowsSection):
    """Preferences: pairs, or answers with scores."""

    chosen_column: str = Field(default="chosen", description="Column with the preferred answer.")
    rejected_column: str = Field(default="rejected", description="Column with the other answer.")
    margin_column: str | None = Field(
        default=None, description="Column with how much better, in score, the chosen answer shall at least be."
    )
    probability_column: str | None = Field(
        default=None, description="Column with the probability, 0 to 1, that the chosen answer is the better one."
    )

    @model_validator(mode="after")
    def _one_kind_of_label(self) -> PairsSection:
        if self.margin_column is not None and self.probability_column is not None:
            raise ValueError(
                "margin_column and probability_column exclude each other: a margin is about pairs whose order is sure"
            )
        return self


class AnswersSection(RowsSection):
    """Demonstrations."""

    completion_column: str = Field(
        default="completion", description="Column with the answer to learn: text, or messages that end with it."
    )


class SplitSection(Section):
    """The held-out rows. Rows of one prompt stay together."""

    held_out_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="Share of the rows that judge the model and never train it."
    )


class HalvesSection(SplitSection):
    """The held-out rows, and whether two models are trained."""

    halves: bool = Field(
        default=False,
        description="Train two reward models on disjoint halves: one to optimise, one to test what it led to.",
    )


class RewardModelLearnerSection(ListLosses, LearnerSection):
    """Optimisation of a reward model."""

    center_coef: float = Field(
        default=0.0, ge=0, description="Weight of the squared sum of a pair's scores, which keeps scores around 0."
    )


class SftLearnerSection(LearnerSection):
    """Optimisation of a warm start."""

    train_on_prompt: bool = Field(default=False, description="Learn the prompts' tokens as well as the answers'.")


class RewardModelRecipe(Section):
    """A whole run of ``rlkl reward-model``."""

    run: RunSection = Field(default_factory=lambda: RunSection(), description="Name and folder of the run.")
    seed: int = Field(default=0, ge=0, description="Every random draw of the run derives from it.")
    model: StartSection = Field(description="What gets the scoring head: a language model, or a reward model.")
    data: PairsSection = Field(description="The preferences.")
    split: HalvesSection = Field(default_factory=lambda: HalvesSection(), description="Held-out pairs, and halves.")
    learner: RewardModelLearnerSection = Field(
        default_factory=lambda: RewardModelLearnerSection(), description="Optimisation."
    )

    @model_validator(mode="after")
    def _loss_and_data_fit(self) -> RewardModelRecipe:
        labels = ("margin_column", "probability_column")
        named = [f"data.{key}" for key in labels if getattr(self.data, key) is not None]
        check_losses(self.data, self.learner, named[0] if named else None)
        return self


class SftRecipe(Section):
    """A whole run of ``rlkl sft``."""

    run: RunSection = Field(default_factory=lambda: RunSection(), description="Name and folder of the run.")
    seed: int = Field(default=0, ge=0, description="Every random draw of the run derives from it.")
    model: StartSection = Field(description="The language model to start from.")
    data: AnswersSection = Field(description="The demonstrations.")
    split: SplitSection = Field(default_factory=lambda: SplitSection(), description="Held-out rows.")
    learner: SftLearnerSection = Field(default_factory=lambda: SftLearnerSection(), description="Optimisation.")
