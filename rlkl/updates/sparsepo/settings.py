"""The settings of SparsePO, DPO, TDPO1 and MaPO. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from rlkl.updates.base_settings import RuleSettings
from rlkl.updates.run_facts import RunFacts

TokenMask = Literal["none", "ones", "mapo", "sparse_common", "sparse_independent"]
MaskedTerms = Literal["both", "reward", "kl"]


class SparsePoSettings(RuleSettings):
    """SparsePO and its special cases DPO, TDPO1 and MaPO (see ``rlkl/updates/sparsepo/README.md``)."""

    learns_from_pairs: ClassVar[bool] = True
    rule: Literal["sparsepo"] = Field(default="sparsepo", description="The update rule.")
    mask: TokenMask = Field(default="sparse_common", description="Token masks: none is DPO, ones is TDPO1.")
    beta: float = Field(default=0.1, gt=0, description="Scale of the implicit reward.")
    masked_terms: MaskedTerms = Field(
        default="both", description="Which terms the mask weighs; the other one counts in full."
    )
    mask_init: Literal["paper", "ones"] = Field(
        default="ones", description="Heads' start: the paper's random one, or masks of 1 (training starts at TDPO1)."
    )
    l1_reward: float = Field(default=0.0, ge=0, description="L1 weight on the reward mask.")
    l1_kl: float = Field(default=0.0, ge=0, description="L1 weight on the KL mask.")
    mask_weight_decay: float = Field(default=0.01, ge=0, description="AdamW's weight decay on the heads' matrices.")
    kl_top_k: int | None = Field(
        default=None, ge=1, description="KL over the reference's k likeliest tokens and a tail; None: the vocabulary."
    )
    min_gap: float = Field(default=0.0, ge=0, description="Groups whose best and worst differ by no more are skipped.")

    @property
    def trains_masks(self) -> bool:
        """Whether heads are trained to give the masks."""
        return self.mask in ("sparse_common", "sparse_independent")

    @property
    def own_terms(self) -> frozenset[str]:
        has_l1 = self.trains_masks and self.l1_reward + self.l1_kl > 0
        return frozenset({"preference", "l1"} if has_l1 else {"preference"})

    @property
    def pull_to_reference(self) -> str:
        return f"update.beta = {self.beta:g}"

    def selection(self, run: RunFacts) -> str:
        return "update.rule = sparsepo, which takes the best and the worst of a prompt,"

    def sequences_together(self, samples: int) -> int:
        return 2

    def warnings(self, run: RunFacts) -> Iterator[str]:
        if not run.has_pairs and run.samples_per_prompt == 1:
            yield (
                "rollout.samples_per_prompt = 1: a pair is the best and the worst completion of a prompt, so nothing "
                "is learned. Take 2 or more"
            )
        if run.has_pairs and self.min_gap >= 1:
            yield (
                f"update.min_gap = {self.min_gap:g}: stored pairs differ by exactly 1 in reward, so all of them are "
                "skipped and nothing is learned. Set update.min_gap=0"
            )
        if run.has_pairs and run.has_rewards:
            yield "rewards are named, but nothing is sampled with data.chosen_column, so none of them is called"
        if self.l1_reward + self.l1_kl > 0 and not self.trains_masks:
            yield (
                f"update.l1_reward and l1_kl: with update.mask = {self.mask} no mask is trained, so they do nothing. "
                "Take sparse_common or sparse_independent"
            )
        if self.mask_init == "paper" and self.trains_masks:
            yield (
                "update.mask_init = paper: masks start near 0.02, so training starts as if update.beta = "
                f"{self.beta:g} were about 40 times smaller. mask_init=ones starts at update.beta"
            )
