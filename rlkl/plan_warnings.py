"""Settings that are allowed and do not mean what one may think. Each check yields sentences: what, why, what to do."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rlkl.machine import Machine
from rlkl.recipe import Recipe
from rlkl.updates.settings import (
    FilterSettings,
    GrpoSettings,
    PapoSettings,
    PpoSettings,
    SparsePoSettings,
    SuperHfSettings,
)

_LARGE_LR = 5e-5
_LARGE_LORA_LR = 1e-3


def warnings_about(recipe: Recipe, machine: Machine) -> tuple[str, ...]:
    """Everything worth saying about a recipe, most serious first."""
    return (*_on_rule(recipe), *_on_rollouts(recipe, machine), *_on_optimisation(recipe), *_on_records(recipe))


def _on_rule(recipe: Recipe) -> Iterator[str]:
    match recipe.update:
        case GrpoSettings():
            yield from _on_group_baseline(recipe, recipe.update)
            yield from _on_ratio(recipe, recipe.update)
            yield from _on_reference(recipe, recipe.update.kl_coef)
            if isinstance(recipe.update, PapoSettings):
                yield from _on_perception(recipe.update)
        case PpoSettings():
            yield from _on_values(recipe.update)
            yield from _on_reference(recipe, recipe.update.kl_coef)
        case SuperHfSettings():
            yield from _on_kept_completions(recipe, recipe.update)
            yield from _on_reference(recipe, recipe.update.kl_coef)
        case SparsePoSettings():
            yield from _on_pairs(recipe, recipe.update)


def _on_pairs(recipe: Recipe, settings: SparsePoSettings) -> Iterator[str]:
    if not recipe.data.has_pairs and recipe.rollout.samples_per_prompt == 1:
        yield (
            "rollout.samples_per_prompt = 1: a pair is the best and the worst completion of a prompt, so nothing is "
            "learned. Take 2 or more"
        )
    if recipe.data.has_pairs and settings.min_gap >= 1:
        yield (
            f"update.min_gap = {settings.min_gap:g}: stored pairs differ by exactly 1 in reward, so all of them are "
            "skipped and nothing is learned. Set update.min_gap=0"
        )
    if recipe.data.has_pairs and recipe.rewards:
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


def _on_group_baseline(recipe: Recipe, settings: GrpoSettings) -> Iterator[str]:
    choices, samples = settings.choices(), recipe.rollout.samples_per_prompt
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
    if choices.drop_uniform_groups and recipe.rollout.max_rounds == 1:
        yield (
            "update.drop_uniform_groups with rollout.max_rounds = 1: groups of equal rewards are dropped and not "
            "replaced, so batches shrink. rollout.max_rounds=4 fills them up"
        )


def _on_ratio(recipe: Recipe, settings: GrpoSettings) -> Iterator[str]:
    choices, steps = settings.choices(), recipe.learner.epochs * recipe.learner.minibatches
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


def _on_kept_completions(recipe: Recipe, settings: SuperHfSettings) -> Iterator[str]:
    samples = recipe.rollout.samples_per_prompt
    kept = _most_kept(settings.filter, samples)
    if kept == samples and (settings.filter is None or settings.filter.keep != "threshold"):
        yield (
            f"update.filter keeps every completion of a prompt ({samples}): rewards then decide nothing, and the "
            "policy only imitates itself. Raise rollout.samples_per_prompt (16 in the paper), or keep fewer"
        )
    sequences = kept * recipe.rollout.prompts_per_step // recipe.learner.minibatches
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


def _on_reference(recipe: Recipe, kl_coef: float) -> Iterator[str]:
    if kl_coef == 0 and not recipe.learner.track_reference_kl:
        yield (
            "update.kl_coef = 0 and learner.track_reference_kl = false: no reference model is kept, so nothing holds "
            "the policy near it and there is no KL curve. learner.track_reference_kl=true logs the KL without using it"
        )


def _on_rollouts(recipe: Recipe, machine: Machine) -> Iterator[str]:
    rollout = recipe.rollout
    sequences = rollout.prompts_per_step * rollout.samples_per_prompt
    if rollout.workers > sequences:
        yield (
            f"rollout.workers = {rollout.workers} exceeds the {sequences} completions of a step, so "
            f"{rollout.workers - sequences} workers stay idle"
        )
    if rollout.workers > 1 and rollout.threads is None and not machine.gpus:
        yield (
            f"rollout.workers = {rollout.workers} and rollout.threads is left out: on one machine without GPUs each "
            f"worker takes all cores and they slow each other. "
            f"Set rollout.threads={max(machine.cpus // rollout.workers, 1)}"
        )
    if rollout.temperature != 1:
        yield (
            f"rollout.temperature = {rollout.temperature}: log-probabilities, KL and entropy are those of the tempered "
            "policy, and it is what gets trained; sample the final policy at the same temperature"
        )
    if recipe.model.dtype == "bfloat16" and not machine.gpus:
        yield (
            "model.dtype = bfloat16 without a GPU: a learner step is slow on cores without bfloat16 instructions, and "
            "sampler and learner agree only to about 0.1 nats a token. float32 is exact"
        )


def _on_optimisation(recipe: Recipe) -> Iterator[str]:
    learner = recipe.learner
    total = recipe.steps * learner.epochs * learner.minibatches
    limit = _LARGE_LR if recipe.model.lora is None else _LARGE_LORA_LR
    if learner.lr > limit and not recipe.model.path.startswith("task:"):
        kind = "all weights of a pretrained model" if recipe.model.lora is None else "adapters"
        yield f"learner.lr = {learner.lr:g} is large for {kind}; above {limit:g} runs often diverge"
    if learner.lr == 0:
        yield "learner.lr = 0: nothing is learned"
    if learner.warmup_steps >= total:
        yield (
            f"learner.warmup_steps = {learner.warmup_steps} is not shorter than the run ({total} optimizer steps): the "
            f"learning rate never reaches {learner.lr:g}"
        )
    longest = recipe.data.max_prompt_tokens + recipe.rollout.max_new_tokens
    if longest > learner.micro_batch_tokens:
        yield (
            f"learner.micro_batch_tokens = {learner.micro_batch_tokens} is below the longest sequence ({longest} "
            "tokens): such a sequence still runs, alone and with the memory that it needs"
        )


def _on_records(recipe: Recipe) -> Iterator[str]:
    if not recipe.rewards and not recipe.data.has_pairs:
        yield (
            "rewards is empty: rlkl train has nothing to optimise. Name one (rewards: [{function: my.py:score}]), or "
            "call rlkl.train(recipe, rewards=[...]) from Python"
        )
    if recipe.checkpoint.every > recipe.steps:
        yield (
            f"checkpoint.every = {recipe.checkpoint.every} exceeds steps = {recipe.steps}: only the end of the run is "
            "saved, and a run that is killed starts from the beginning"
        )
