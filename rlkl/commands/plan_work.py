"""Work of one training step, from the recipe: tokens, the learner's passes, the settings that decide its memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rlkl.costs.find import parameters_of
from rlkl.costs.memory import Training
from rlkl.costs.seconds import Tokens, operations
from rlkl.costs.shapes import ModelShape
from rlkl.recipe import Recipe
from rlkl.recipe.memory import follower_copies
from rlkl.updates.base_settings import most_kept
from rlkl.updates.passes import Passes, passes_of

FORWARD, BACKWARD = 2, 4
"""Operations for each parameter and token. The backward pass is 2 if only adapters are trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Sequences and lengths of one step, and the operations of its learner.

    32 prompts x 8 samples = 256 sequences; a rule that keeps the best of each prompt trains on 32 of them.
    """

    sequences: int
    """All that are sampled, or all stored answers."""
    trained: int
    """Sequences that reach the learner's training passes."""
    prompt: float
    """Mean tokens of a prompt."""
    completion: float
    """Mean tokens of a completion."""
    longest: int
    """Tokens of the longest prompt with the longest completion."""
    longest_completion: int
    learner: float
    """Operations of the learner."""
    published: int
    """Parameters that are published after the step."""

    @property
    def length(self) -> float:
        return self.prompt + self.completion


def work_of(recipe: Recipe, shape: ModelShape, *, prompt: float | None = None, completion: float | None = None) -> Work:
    """Work out one step. Lengths that are not given are assumed to be half of the allowed ones."""
    rollout, data = recipe.rollout, recipe.data
    sequences, trained = rollout.prompts_per_step * _samples(recipe), rollout.prompts_per_step * _kept(recipe)
    mean_prompt = data.max_prompt_tokens / 2 if prompt is None else prompt
    mean_completion = rollout.max_new_tokens / 2 if completion is None else completion
    length = mean_prompt + mean_completion
    added = sum(term.added_sequences(trained) for term in recipe.update.terms)  # of the same length, for want of theirs
    work = operations(shape, Tokens.alike(trained + added, length), _units(recipe))
    if _keeps_reference(recipe):  # the KL to the reference is measured on sequences that are not trained, too
        work += operations(shape, Tokens.alike(sequences - trained, length), FORWARD)
    compared = recipe.update.correction_rounds * sequences  # at most; by the policy and by a teacher of its size
    work += operations(shape, Tokens.alike(compared, length), 2 * FORWARD)
    return Work(
        sequences=sequences,
        trained=trained,
        prompt=mean_prompt,
        completion=mean_completion,
        longest=data.max_prompt_tokens + rollout.max_new_tokens,
        longest_completion=rollout.max_new_tokens,
        learner=work,
        published=_adapters(recipe, shape) if recipe.model.publishes_adapters else shape.parameters,
    )


def training_of(recipe: Recipe, shape: ModelShape) -> Training:
    """Return the settings of the recipe that decide the learner's memory."""
    has_copy = _keeps_reference(recipe) and (recipe.model.lora is None or recipe.model.reference is not None)
    frozen = [shape.parameters] if has_copy else []
    frozen += [shape.parameters] * follower_copies(recipe)
    frozen += [parameters_of(section.path) or shape.parameters for section in recipe.models.values()]
    return Training(
        is_bfloat16=recipe.model.dtype == "bfloat16",
        is_checkpointed=recipe.model.gradient_checkpointing,
        micro_batch=most_tokens(recipe),
        chunk=recipe.learner.logits_chunk_tokens,
        frozen=tuple(frozen),
        adapters=None if recipe.model.lora is None else _adapters(recipe, shape),
        critic=shape.parameters * _passes(recipe).critics,
        offloads_optimizer=recipe.learner.offload == "optimizer",
        has_8_bit_moments=recipe.learner.optimizer == "adamw_8bit",
        has_whole_logits=recipe.update.has_whole_logits
        or any(getattr(one, key, None) for one, key in _kl_limits(recipe))
        or any(
            term.term == "span" or getattr(term, "estimator", "") == "cauchy_schwarz" for term in recipe.update.terms
        ),
    )


def _kl_limits(recipe: Recipe) -> Iterator[tuple[Any, str]]:
    """Yield the settings, and their keys, that limit a KL to some ids of the vocabulary."""
    yield recipe.update, "kl_top_k"
    yield from ((term, key) for term in recipe.update.terms for key in ("top_k", "vocabulary_ids"))


def most_tokens(recipe: Recipe) -> int:
    """Return the tokens of the largest micro-batch.

    It holds at most ``learner.micro_batch_tokens``, no more than a minibatch of the longest sequences has, and always
    at least one sequence, or one list of sequences that the rule compares.
    """
    rollout, learner = recipe.rollout, recipe.learner
    longest = recipe.data.max_prompt_tokens + rollout.max_new_tokens
    groups = math.ceil(rollout.prompts_per_step / learner.minibatches)
    least = recipe.update.sequences_together(_samples(recipe)) * longest
    trained = groups * _kept(recipe)
    trained += sum(term.added_sequences(trained) for term in recipe.update.terms)
    return max(min(learner.micro_batch_tokens, trained * longest), least)


def _samples(recipe: Recipe) -> int:
    return 2 if recipe.data.has_pairs else recipe.rollout.samples_per_prompt


def _kept(recipe: Recipe) -> int:
    """Return the sequences of a group that are trained on, at most."""
    both = recipe.update.learns_from_pairs and not recipe.update.is_best_of_n
    kept = 2 if both else most_kept(recipe.update.filter, _samples(recipe))
    return min(kept, _samples(recipe))


def _units(recipe: Recipe) -> float:
    """Count the operations for each parameter and token of a trained sequence.

    Each epoch: forward, backward, and the forward pass again if activations are recomputed; also for a critic and for
    changed pictures. Once a step: the forward passes that the rule asks for, and those of each frozen model.
    """
    passes = _passes(recipe)
    backward = BACKWARD if recipe.model.lora is None else BACKWARD / 2
    once = FORWARD + backward + (FORWARD if recipe.model.gradient_checkpointing else 0)
    critics = passes.critics * (FORWARD + BACKWARD)  # without recomputation, and whole also beside adapters
    frozen = passes.forward + _keeps_reference(recipe) + len(recipe.models)
    frozen += recipe.update.keeps_average + recipe.update.keeps_lagged
    return recipe.learner.epochs * (once * (1 + passes.training) + critics) + FORWARD * frozen


def _passes(recipe: Recipe) -> Passes:
    return passes_of(recipe.update, optimizer_steps=recipe.learner.epochs * recipe.learner.minibatches)


def _keeps_reference(recipe: Recipe) -> bool:
    return recipe.learner.track_reference_kl or recipe.update.needs_reference_model


def _adapters(recipe: Recipe, shape: ModelShape) -> int:
    lora = recipe.model.lora
    if lora is None:
        return 0
    targets = None if lora.target_modules == "all-linear" else frozenset(lora.target_modules)
    return shape.adapter_parameters(lora.rank, targets)
