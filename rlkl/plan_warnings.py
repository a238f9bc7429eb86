"""Settings that are allowed and do not mean what one may think. Each check yields sentences: what, why, what to do."""

from __future__ import annotations

from collections.abc import Iterator

from rlkl.machine import Machine
from rlkl.recipe import Recipe
from rlkl.updates.settings import GrpoSettings

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


def _on_group_baseline(recipe: Recipe, settings: GrpoSettings) -> Iterator[str]:
    choices, samples = settings.choices(), recipe.rollout.samples_per_prompt
    if samples == 1:
        yield (
            "rollout.samples_per_prompt = 1: a reward is compared with the others of its prompt, and there are none, "
            "so every advantage is 0 and nothing is learned. Take 4 or more"
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
    if not recipe.rewards:
        yield (
            "rewards is empty: rlkl train has nothing to optimise. Name one (rewards: [{function: my.py:score}]), or "
            "call rlkl.train(recipe, rewards=[...]) from Python"
        )
    if recipe.checkpoint.every > recipe.steps:
        yield (
            f"checkpoint.every = {recipe.checkpoint.every} exceeds steps = {recipe.steps}: only the end of the run is "
            "saved, and a run that is killed starts from the beginning"
        )
