"""Warnings about settings that may not do what you expect: the keys, the effect, and what to set instead."""

from __future__ import annotations

from collections.abc import Iterator

from rlkl.recipe import Recipe
from rlkl.recipe.rollout_section import REJECTED_BATCHES
from rlkl.rewards.loading import uses_of_rewards
from rlkl.system.machine import Machine
from rlkl.updates.run_facts import RunFacts
from rlkl.updates.terms.checks import warnings_about_terms

_LARGE_LR = 5e-5
_LARGE_LORA_LR = 1e-3


def warnings_about(recipe: Recipe, machine: Machine) -> tuple[str, ...]:
    """List all warnings about a recipe, the most serious first."""
    facts = _facts(recipe)
    return (
        *recipe.update.warnings(facts),
        *warnings_about_terms(recipe.update, facts),
        *_on_models(recipe),
        *_on_rollouts(recipe, machine),
        *_on_optimisation(recipe),
        *_on_evaluation(recipe),
        *_on_records(recipe),
    )


def _facts(recipe: Recipe) -> RunFacts:
    return RunFacts(
        has_pairs=recipe.data.has_pairs,
        has_rewards=bool(recipe.rewards),
        prompts_per_step=recipe.rollout.prompts_per_step,
        samples_per_prompt=recipe.rollout.samples_per_prompt,
        max_rounds=REJECTED_BATCHES if recipe.rollout.schedule == "stream" else recipe.rollout.max_rounds,
        epochs=recipe.learner.epochs,
        minibatches=recipe.learner.minibatches,
        tracks_reference_kl=recipe.learner.track_reference_kl,
        samples_ahead=recipe.rollout.schedule != "alternate",
    )


def _on_models(recipe: Recipe) -> Iterator[str]:
    """Warn about models that no term of rlkl uses; a custom rule or term may use any."""
    has_custom = ":" in recipe.update.rule or any(":" in term.term for term in recipe.update.terms)
    named = {term.frozen_model for term in recipe.update.terms} | recipe.update.frozen_models
    for name in [] if has_custom else sorted(recipe.models.keys() - named):
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
    if rollout.schedule == "stream" and rollout.max_rounds > 1:
        yield (
            f"rollout.max_rounds = {rollout.max_rounds} has no effect with rollout.schedule = stream: a step samples "
            "until it is full. Leave it out"
        )
    if rollout.schedule != "stream" and rollout.max_staleness != type(rollout).model_fields["max_staleness"].default:
        yield (
            f"rollout.max_staleness = {rollout.max_staleness} has no effect with rollout.schedule = "
            f"{rollout.schedule}. Leave it out, or set rollout.schedule: stream"
        )
    if rollout.placement == "colocated" and not machine.gpus and recipe.cluster.resolved_address is None:
        yield (
            "rollout.placement = colocated without a GPU: engines sleep and wake in the order of a GPU, but vLLM keeps "
            "their memory on a CPU. Nothing is saved; rollout.placement=separate gives the same numbers"
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


def _on_evaluation(recipe: Recipe) -> Iterator[str]:
    if recipe.eval is None or recipe.eval_data is None:
        return
    own, data = recipe.eval_data, recipe.data
    if (own.source, own.subset, own.split) == (data.source, data.subset, data.split):
        yield (
            f"eval.data is the data of the training ({data.source}): eval/mean does not show whether the policy does "
            "well on other prompts. Name a split or a file that is held out"
        )
    if recipe.eval.every > recipe.steps:
        yield (
            f"eval.every = {recipe.eval.every} exceeds steps = {recipe.steps}: the run is evaluated at its start and "
            "its end only"
        )
    if recipe.eval.temperature != 1:
        yield (
            f"eval.temperature = {recipe.eval.temperature:g}: there is no eval/kl, which is measured on samples at "
            "temperature 1"
        )


def _on_records(recipe: Recipe) -> Iterator[str]:
    if not recipe.rewards and not recipe.data.has_pairs and not recipe.update.learns_without_rewards:
        yield (
            "rewards is empty: rlkl train refuses that. Name one (rewards: [{function: my.py:score}]), or "
            "call rlkl.train(recipe, rewards=[...]) from Python"
        )
    elif not recipe.rewards and not recipe.data.has_pairs and (uses := uses_of_rewards(recipe)):
        yield (
            f"{uses[0]}, and rewards is empty: rlkl train refuses that, unless rewards come from Python. Name one "
            "(rewards: [{function: my.py:score}]), or leave that key out"
        )
    if recipe.checkpoint.every > recipe.steps:
        yield (
            f"checkpoint.every = {recipe.checkpoint.every} exceeds steps = {recipe.steps}: only the end of the run is "
            "saved, so a run that is killed loses the steps since the checkpoint that it started from"
        )
