"""Warnings about settings that may not do what you expect: the keys, the effect, and what to set instead."""

from __future__ import annotations

from collections.abc import Iterator

from rlkl.recipe import Recipe
from rlkl.system.machine import Machine
from rlkl.updates.base_settings import RunFacts

_LARGE_LR = 5e-5
_LARGE_LORA_LR = 1e-3


def warnings_about(recipe: Recipe, machine: Machine) -> tuple[str, ...]:
    """List all warnings about a recipe, the most serious first."""
    return (
        *recipe.update.warnings(_facts(recipe)),
        *_on_terms(recipe),
        *_on_rollouts(recipe, machine),
        *_on_optimisation(recipe),
        *_on_records(recipe),
    )


def _facts(recipe: Recipe) -> RunFacts:
    return RunFacts(
        has_pairs=recipe.data.has_pairs,
        has_rewards=bool(recipe.rewards),
        prompts_per_step=recipe.rollout.prompts_per_step,
        samples_per_prompt=recipe.rollout.samples_per_prompt,
        max_rounds=recipe.rollout.max_rounds,
        epochs=recipe.learner.epochs,
        minibatches=recipe.learner.minibatches,
        tracks_reference_kl=recipe.learner.track_reference_kl,
    )


def _on_terms(recipe: Recipe) -> Iterator[str]:
    """Warn about terms that repeat what the rule does, name no model of the recipe, or weigh nothing."""
    own = getattr(recipe.update, "kl_coef", 0)
    for number, term in enumerate(recipe.update.terms):
        key, to = f"update.terms[{number}]", getattr(term, "to", None)
        if to == "reference" and own > 0:
            yield (
                f"{key} is a KL to the reference, and update.rule = {recipe.update.rule} has one of its own "
                f"(update.kl_coef = {own:g}): both act. Set one of the two to 0"
            )
        own_entropy = getattr(recipe.update, "entropy_coef", 0)
        if term.term == "entropy" and own_entropy > 0:
            yield (
                f"{key} is an entropy term, and update.rule = {recipe.update.rule} has one of its own "
                f"(update.entropy_coef = {own_entropy:g}): both act. Set one of the two to 0"
            )
        if term in recipe.update.terms[:number]:
            first = recipe.update.terms.index(term)
            yield f"{key} repeats update.terms[{first}]: both act. Leave one out, or give one another coef"
        if term.coef == 0:
            yield f"{key}.coef = 0: the term costs its computation and does nothing. Leave it out, or set coef"
    named = {getattr(term, "to", None) for term in recipe.update.terms}
    for name in sorted(recipe.models.keys() - named):
        if ":" not in recipe.update.rule and not any(":" in term.term for term in recipe.update.terms):
            yield f"models.{name} is named, but no term uses it. Add update.terms: [{{term: kl, to: {name}}}]"


def _on_rollouts(recipe: Recipe, machine: Machine) -> Iterator[str]:
    rollout = recipe.rollout
    sequences = rollout.prompts_per_step * rollout.samples_per_prompt
    if rollout.workers > sequences:
        yield (
            f"rollout.workers = {rollout.workers} exceeds the {sequences} completions of a step, so "
            f"{rollout.workers - sequences} workers stay idle"
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
