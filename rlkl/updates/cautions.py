"""A rule's settings that are allowed and do not mean what one may think. No torch here: `rlkl plan` prints these."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from rlkl.updates.settings import (
    FilterSettings,
    GrpoSettings,
    PapoSettings,
    PpoSettings,
    RuleSettings,
    SparsePoSettings,
    SuperHfSettings,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What a rule's settings have to fit: parts of the recipe that are not its own."""

    has_pairs: bool
    """Answers come with the prompts; nothing is sampled."""
    has_rewards: bool
    prompts_per_step: int
    samples_per_prompt: int
    max_rounds: int
    """Draws of prompts until a step is full."""
    epochs: int
    minibatches: int
    tracks_reference_kl: bool


def warnings_about_rule(settings: RuleSettings, run: RunFacts) -> Iterator[str]:
    """Sentences on what its settings, in this run, do not do; none on a rule from outside."""
    match settings:
        case GrpoSettings():
            yield from _on_group_baseline(run, settings)
            yield from _on_ratio(run, settings)
            yield from _on_reference(run, settings.kl_coef)
            if isinstance(settings, PapoSettings):
                yield from _on_perception(settings)
        case PpoSettings():
            yield from _on_values(settings)
            yield from _on_reference(run, settings.kl_coef)
        case SuperHfSettings():
            yield from _on_kept_completions(run, settings)
            yield from _on_reference(run, settings.kl_coef)
        case SparsePoSettings():
            yield from _on_pairs(run, settings)


def _on_pairs(run: RunFacts, settings: SparsePoSettings) -> Iterator[str]:
    if not run.has_pairs and run.samples_per_prompt == 1:
        yield (
            "rollout.samples_per_prompt = 1: a pair is the best and the worst completion of a prompt, so nothing is "
            "learned. Take 2 or more"
        )
    if run.has_pairs and settings.min_gap >= 1:
        yield (
            f"update.min_gap = {settings.min_gap:g}: stored pairs differ by exactly 1 in reward, so all of them are "
            "skipped and nothing is learned. Set update.min_gap=0"
        )
    if run.has_pairs and run.has_rewards:
        yield "rewards are named, but nothing is sampled with data.chosen_column, so none of them is called"
    has_heads = settings.mask in ("sparse_common", "sparse_independent")
    if settings.l1_reward + settings.l1_kl > 0 and not has_heads:
        yield (
            f"update.l1_reward and l1_kl: with update.mask = {settings.mask} no mask is trained, so they do nothing. "
            "Take sparse_common or sparse_independent"
        )
    if settings.mask_init == "paper" and has_heads:
        yield (
            "update.mask_init = paper: masks start near 0.02, so training starts as if update.beta = "
            f"{settings.beta:g} were about 40 times smaller. mask_init=ones starts at update.beta"
        )


def _on_group_baseline(run: RunFacts, settings: GrpoSettings) -> Iterator[str]:
    choices, samples = settings.choices(), run.samples_per_prompt
    if samples == 1:
        yield (
            "rollout.samples_per_prompt = 1: a reward is compared with the others of its prompt, and there are none, "
            "so every advantage is 0 and nothing is learned. Take 4 or more"
        )
    if samples > 1 and _most_kept(settings.filter, samples) == 1:
        yield (
            "update.filter keeps one completion of a prompt, and its reward is compared with the others that are kept: "
            "there are none, so every advantage is 0 and nothing is learned. Keep more"
        )
    if samples == 2 and choices.advantage == "group_std":
        yield (
            "rollout.samples_per_prompt = 2 with update.advantage = group_std: dividing by the spread of two rewards "
            "leaves only which is higher; the size of the difference is lost. Take more, or group_mean"
        )
    if choices.drop_uniform_groups and run.max_rounds == 1:
        yield (
            "update.drop_uniform_groups with rollout.max_rounds = 1: groups of equal rewards are dropped and not "
            "replaced, so batches shrink. rollout.max_rounds=4 fills them up"
        )


def _on_ratio(run: RunFacts, settings: GrpoSettings) -> Iterator[str]:
    choices, steps = settings.choices(), run.epochs * run.minibatches
    own_clip = settings.clip_low is not None or settings.clip_high is not None
    if steps == 1 and own_clip:
        yield (
            "update.clip_low and clip_high: with one optimizer step per batch the importance ratio is exactly 1 and is "
            "never clipped. They act from learner.epochs or learner.minibatches = 2 on"
        )
    if steps > 1 and choices.surrogate == "clip" and choices.clip_low is None and choices.clip_high is None:
        yield (
            f"update.variant = {settings.variant} with {steps} optimizer steps per batch: from the second on the "
            "samples are off-policy and nothing bounds the importance ratio. Set update.clip_low and clip_high, "
            "or take one step"
        )
    if steps > 1 and choices.surrogate == "truncated_weight" and choices.clip_low is None:
        yield (
            f"update.variant = {settings.variant} with {steps} optimizer steps per batch: importance weights are "
            "bounded from above only, and tokens that became unlikely fade out of the gradient"
        )


def _on_kept_completions(run: RunFacts, settings: SuperHfSettings) -> Iterator[str]:
    samples = run.samples_per_prompt
    kept = _most_kept(settings.filter, samples)
    if kept == samples and (settings.filter is None or settings.filter.keep != "threshold"):
        yield (
            f"update.filter keeps every completion of a prompt ({samples}): rewards then decide nothing, and the "
            "policy only imitates itself. Raise rollout.samples_per_prompt (16 in the paper), or keep fewer"
        )
    sequences = kept * run.prompts_per_step // run.minibatches
    if settings.compat and settings.kl_coef > 0 and sequences > 2:
        yield (
            f"update.compat sums the KL over up to {sequences} sequences of an optimizer step: update.kl_coef = "
            f"{settings.kl_coef:g} acts as {sequences * settings.kl_coef:g}. The paper's main runs had 2 sequences a "
            "step; raise learner.minibatches"
        )


def _most_kept(settings: FilterSettings | None, samples: int) -> int:
    """Upper bound of a prompt's completions that pass the filter."""
    if settings is None or settings.keep == "threshold":
        return samples
    return min(int(settings.value), samples) if settings.keep == "top_k" else math.ceil(settings.value * samples)


def _on_perception(settings: PapoSettings) -> Iterator[str]:
    if settings.corrupted_entropy_coef > 0 and not settings.recompute:
        yield (
            "update.corrupted_entropy_coef without update.recompute: the corrupted log-probs are constants, so this "
            "term shows in the logged loss and trains nothing (so it is in the paper's released code, too)"
        )
    if settings.perception_coef > 0 and settings.kl_coef == 0 and settings.entropy_coef == 0:
        yield (
            f"update.perception_coef = {settings.perception_coef:g} with neither update.kl_coef nor "
            "update.entropy_coef: nothing keeps the policy from raising the perception KL by odd tokens. The paper "
            "takes perception_coef 0.01 and entropy_coef 0.03 where there is no KL to the reference"
        )


def _on_values(settings: PpoSettings) -> Iterator[str]:
    if settings.critic == "none" and settings.gae_lambda < 1:
        yield (
            f"update.critic = none with update.gae_lambda = {settings.gae_lambda:g}: without values lambda is but one "
            "more discount, and early tokens hardly see the reward. gae_lambda=1 is REINFORCE"
        )
    if settings.critic == "none" and not settings.whiten:
        yield (
            "update.critic = none with update.whiten = false: rewards have no baseline, so where all are positive "
            "every sampled token is reinforced. Set whiten, or take a critic"
        )


def _on_reference(run: RunFacts, kl_coef: float) -> Iterator[str]:
    if kl_coef == 0 and not run.tracks_reference_kl:
        yield (
            "update.kl_coef = 0 and learner.track_reference_kl = false: no reference model is kept, so nothing holds "
            "the policy near it and there is no KL curve. learner.track_reference_kl=true logs the KL without using it"
        )
