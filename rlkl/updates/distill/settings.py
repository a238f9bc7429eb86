"""The settings of on-policy distillation. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from rlkl.updates.base_settings import CorrectedSettings
from rlkl.updates.run_facts import RunFacts
from rlkl.updates.terms.settings import SAMPLED, Direction

OF_THE_GATE = ("gate_temperature", "gate_lr_scale")
"""Keys that act with ``gate_tokens`` only."""
OF_THE_LOSS = (
    *("direction", "top_k", "jsd_beta", "kept_mass", "gate_tokens", *OF_THE_GATE),
    *("on_policy_fraction", "answer_column", "corrections"),
)
"""Keys that act with ``placement: loss`` only."""


class DistillSettings(CorrectedSettings):
    """On-policy distillation: KL to a teacher on the policy's own samples (`rlkl.updates.distill`)."""

    rule: Literal["distill"] = Field(default="distill", description="The update rule.")
    teacher: str = Field(default="teacher", description="The teacher: a name of models, with the policy's vocabulary.")
    placement: Literal["loss", "reward"] = Field(
        default="loss",
        description="loss: the exact KL; reward: log(teacher / policy) of each sampled token as its advantage.",
    )
    direction: Direction = Field(
        default="policy_to_model",
        description="Of the exact KL: KL(policy || teacher), or KL(teacher || policy), which covers the teacher.",
    )
    top_k: int | None = Field(
        default=None,
        ge=1,
        description="Exact KL over the teacher's k likeliest tokens and a tail; null: the whole vocabulary.",
    )
    jsd_beta: float | None = Field(
        default=None,
        description="Jensen-Shannon instead of the KL: near 0 like KL(teacher || policy), near 1 like the other one.",
    )
    kept_mass: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="KL over the teacher's likeliest tokens of so much probability, the sampled token and a bucket.",
    )
    gate_tokens: int | None = Field(
        default=None,
        ge=1,
        description="A learned window around kept_mass: likeliest tokens of each model for its gate; null: none.",
    )
    gate_temperature: float = Field(
        default=0.1, gt=0, description="Softness of the gate, as a share of what kept_mass leaves out."
    )
    gate_lr_scale: float = Field(
        default=10.0, gt=0, description="The gate's learning rate as a multiple of learner.lr."
    )
    on_policy_fraction: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Share of a step's sequences that the policy samples; the others are stored.",
    )
    answer_column: str | None = Field(default=None, description="Column of the data with the stored answers.")
    corrections: int = Field(
        default=0,
        ge=0,
        le=8,
        description="Rounds that put the teacher's token at a sample's worst error and sample on from there; 0: none.",
    )
    clip: float = Field(default=0.2, gt=0, lt=1, description="reward: the ratio is clipped at 1 - clip and 1 + clip.")
    max_log_ratio: float = Field(
        default=10.0, gt=0, description="reward: log(teacher / policy) is cut at plus and minus so many nats."
    )
    reward_coef: float = Field(
        default=0.0, ge=0, description="reward: weight of GRPO's advantage from the recipe's rewards beside it."
    )

    @model_validator(mode="after")
    def _keys_fit_the_placement(self) -> DistillSettings:
        elsewhere = ("clip", "max_log_ratio", "reward_coef") if self.placement == "loss" else OF_THE_LOSS
        misplaced = self._set(*elsewhere)
        if misplaced:
            other = "reward" if self.placement == "loss" else "loss"
            raise ValueError(
                f"{' and '.join(misplaced)} with placement = {self.placement}: it acts with placement = "
                f"{other} only. Leave it out, or set placement: {other}"
            )
        return self

    @model_validator(mode="after")
    def _beta_lies_between(self) -> DistillSettings:
        if self.jsd_beta is not None and not 0 < self.jsd_beta < 1:
            raise ValueError(
                f"jsd_beta = {self.jsd_beta:g}: it lies above 0 and below 1. The limit for 0 is direction: "
                "model_to_policy, and the limit for 1 is direction: policy_to_model, both without jsd_beta"
            )
        if self.jsd_beta is not None and self._set("direction"):
            raise ValueError(
                f"direction = {self.direction} with jsd_beta = {self.jsd_beta:g}: jsd_beta decides the direction. "
                "Leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _one_way_to_leave_tokens_out(self) -> DistillSettings:
        if self.kept_mass is not None and (others := self._set("top_k", "jsd_beta")):
            raise ValueError(
                f"{' and '.join(others)} with kept_mass = {self.kept_mass:g}: kept_mass is of the KL over the whole "
                "vocabulary. Leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _a_gate_has_a_smallest_window(self) -> DistillSettings:
        if self.gate_tokens is not None and self.kept_mass is None:
            raise ValueError(
                f"gate_tokens = {self.gate_tokens} without kept_mass: the gate's window holds at least the probability "
                "kept_mass of the teacher, or it would narrow to nothing. Set kept_mass, such as 0.95"
            )
        if self.gate_tokens is None and (others := self._set(*OF_THE_GATE)):
            raise ValueError(
                f"{' and '.join(others)} without gate_tokens: there is no gate. Set gate_tokens, such as 8"
            )
        return self

    @model_validator(mode="after")
    def _stored_answers_have_a_column(self) -> DistillSettings:
        if self.on_policy_fraction < 1 and self.answer_column is None:
            raise ValueError(
                f"on_policy_fraction = {self.on_policy_fraction:g}: the other sequences are answers of the data. Name "
                "their column with answer_column, or set on_policy_fraction: 1"
            )
        if self.on_policy_fraction == 1 and self.answer_column is not None:
            raise ValueError(
                f"answer_column = {self.answer_column} with on_policy_fraction = 1: no stored answer is trained on. "
                "Set on_policy_fraction below 1, or leave answer_column out"
            )
        return self

    @model_validator(mode="after")
    def _corrected_samples_are_trained_on(self) -> DistillSettings:
        if self.corrections and self.on_policy_fraction == 0:
            raise ValueError(
                f"corrections = {self.corrections} with on_policy_fraction = 0: no sample is trained on, so none needs "
                "a correction. Set on_policy_fraction above 0, or corrections: 0"
            )
        return self

    def _set(self, *keys: str) -> list[str]:
        """Return those of the keys that differ from their defaults."""
        return [key for key in keys if getattr(self, key) != type(self).model_fields[key].default]

    @property
    def keeps_reference(self) -> bool:
        return False

    @property
    def learns_without_rewards(self) -> bool:
        return self.reward_coef == 0 and self.filter is None

    @property
    def frozen_models(self) -> frozenset[str]:
        return frozenset({self.teacher})

    @property
    def answer_columns(self) -> dict[str, str]:
        return {} if self.answer_column is None else {"update.answer_column": self.answer_column}

    @property
    def has_whole_logits(self) -> bool:
        return bool(self._set("top_k", "jsd_beta", "kept_mass", "corrections"))

    @property
    def correction_rounds(self) -> int:
        return self.corrections

    @property
    def own_terms(self) -> frozenset[str]:
        return frozenset({"distill"} if self.placement == "loss" else {"policy"})

    def warnings(self, run: RunFacts) -> Iterator[str]:
        if (source := self.selection(run)) is not None and self.placement == "reward":
            yield (
                f"{source} with update.placement = reward: completions picked by their rewards are no sample of the "
                "policy, so log(teacher / policy) no longer estimates a KL. Leave update.filter out, or set "
                "placement: loss"
            )
        if self.reward_coef > 0 and run.samples_per_prompt == 1:
            yield (
                f"update.reward_coef = {self.reward_coef:g} with rollout.samples_per_prompt = 1: there is nothing to "
                "compare a reward with, so it does nothing. Take 4 samples or more"
            )
        if self.gate_tokens is not None:
            yield (
                f"update.gate_tokens = {self.gate_tokens}: the gate is trained on the same loss, which never rises "
                f"when the window narrows, so the window tends to that of update.kept_mass = {self.kept_mass:g} alone. "
                "Watch distill/gate, and lower update.gate_lr_scale for a slower change"
            )
        if self.on_policy_fraction < 1:
            yield from self._warnings_about_stored_answers(run)
        if self.corrections:
            yield from self._warnings_about_corrections(run)

    def _warnings_about_stored_answers(self, run: RunFacts) -> Iterator[str]:
        share = f"update.on_policy_fraction = {self.on_policy_fraction:g}"
        if self.on_policy_fraction == 0:
            yield (
                f"{share}: the policy's samples are measured and not trained on, so the policy never learns at its own "
                "mistakes. Set it above 0 for on-policy distillation"
            )
        if any(term.term == "rewording" for term in self.terms):
            yield (
                f"{share} with the term rewording: it acts on the policy's own samples only, so on that share of a step"
            )
        if sampled := [term.term for term in self.terms if getattr(term, "estimator", None) in SAMPLED]:
            yield (
                f"{share} with update.terms {', '.join(sampled)} of estimator k1, k2 or k3: stored answers are no "
                "sample of the policy, so the estimate is biased. Take estimator: exact"
            )

    def _warnings_about_corrections(self, run: RunFacts) -> Iterator[str]:
        corrected = f"update.corrections = {self.corrections}"
        if others := [term.term for term in self.terms if term.term in ("rewording", "consistency")]:
            yield (
                f"{corrected} with update.terms {', '.join(others)}: corrected completions are no sample of the "
                "policy, so the term's estimate is biased. Leave one of them out"
            )
        if sampled := [term.term for term in self.terms if getattr(term, "estimator", None) in SAMPLED]:
            yield (
                f"{corrected} with update.terms {', '.join(sampled)} of estimator k1, k2 or k3: corrected completions "
                "are no sample of the policy, so the estimate is biased. Take estimator: exact"
            )
        if run.tracks_reference_kl:
            yield (
                f"{corrected} with learner.track_reference_kl = true: kl/policy_to_reference is measured on corrected "
                "completions, which are no sample of the policy. Read the KL of an evaluation (eval/kl) instead"
            )
