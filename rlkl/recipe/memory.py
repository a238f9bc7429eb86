"""Memory for weights and optimizer, estimated from the shapes in a checkpoint or from the model's config.json."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rlkl.costs.eight_bit import BYTES, WHOLE_BYTES, in_blocks
from rlkl.costs.find import find_shape
from rlkl.errors import InputError, RecipeError
from rlkl.recipe import Recipe
from rlkl.recipe.weight_files import shapes_in
from rlkl.updates.passes import passes_of

_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """GiB (2**30 bytes) for weights and optimizer. Activations come on top."""

    parameters: int
    learner_gib: float
    """Weights, gradients and moments."""
    moments_gib: float
    """The moments' part of that."""
    gradients_gib: float
    """The gradients' part of it."""
    reference_gib: float
    """Weights of all frozen models of the learner: the reference, those that follow the policy, and ``models``."""
    engine_gib: float
    """Weights of each engine, without its key-value cache."""
    copy_gib: float
    """In host memory, with several optimizer steps a batch: weights, moments, followers, to undo a step that fails."""


@dataclass(frozen=True, slots=True)
class _Counted:
    """Parameters of a model, and those of them that can have moments of 8 bits."""

    all: int
    in_8_bit: int


def follower_copies(recipe: Recipe) -> int:
    """Return the memory of the frozen models that follow the policy, in copies of the policy in its own precision.

    Under LoRA they are adapters, and not counted.
    """
    if recipe.model.lora is not None:
        return 0
    average = 3 if recipe.model.dtype == "bfloat16" else 1  # in bfloat16: the model, and averages in float32
    return average * recipe.update.keeps_average + 2 * recipe.update.keeps_lagged


def _copied_gib(recipe: Recipe, gib: float) -> float:
    """Return the memory of a copy of what follows the policy: averages in float32, and two snapshots."""
    snapshots = 2 * _BYTES[recipe.model.dtype] * recipe.update.keeps_lagged
    return gib * (4 * recipe.update.keeps_average + snapshots) if follower_copies(recipe) else 0.0


def estimate_memory(recipe: Recipe, folder: str | Path, frozen: Iterable[str | Path]) -> MemoryEstimate | None:
    """Estimate from the model's folder, or from its name on the hub; None if its size is not known on this machine.

    ``frozen``: the folders or names of the recipe's ``models``.
    """
    counted = _parameters_in(folder)
    if not counted.all:
        return None
    small = counted.in_8_bit if recipe.learner.optimizer == "adamw_8bit" else 0
    moments_gib = (WHOLE_BYTES * counted.all - (WHOLE_BYTES - BYTES) * small) / 2**30
    gib = counted.all / 2**30
    # Beside the moments, in float32: weight and gradient; in bfloat16 also the weight that computes.
    trained_gib = (8 + (2 if recipe.model.dtype == "bfloat16" else 0)) * gib + moments_gib
    critics = passes_of(recipe.update, optimizer_steps=1).critics
    trained = critics + (recipe.model.lora is None)
    wants_reference = recipe.learner.track_reference_kl or recipe.update.needs_reference_model
    has_copy = wants_reference and (recipe.model.lora is None or recipe.model.reference is not None)
    frozen_parameters = sum(_parameters_in(one).all for one in frozen)
    frozen_parameters += counted.all * follower_copies(recipe)
    several_steps = recipe.learner.epochs * recipe.learner.minibatches > 1
    return MemoryEstimate(
        parameters=counted.all,
        learner_gib=trained * trained_gib + (0.0 if recipe.model.lora is None else 4 * gib),
        moments_gib=trained * moments_gib,
        gradients_gib=trained * 4 * gib,
        reference_gib=_BYTES[recipe.model.dtype] * ((gib if has_copy else 0.0) + frozen_parameters / 2**30),
        engine_gib=_BYTES[recipe.model.dtype] * gib,
        copy_gib=trained * (4 * gib + moments_gib) + _copied_gib(recipe, gib) if several_steps else 0.0,
    )


def least_learner_gib(recipe: Recipe, memory: MemoryEstimate | None, *, on_gpu: bool) -> float | None:
    """Return the least memory that each rank of the learner can need, its share of weights, gradients and moments.

    None if unknown (adapters and frozen parts need less). ``on_gpu``: moments that are offloaded are elsewhere.
    """
    if memory is None or recipe.model.lora is not None or recipe.model.freeze_vision:
        return None
    hosted_gib = memory.moments_gib if on_gpu and recipe.learner.offload == "optimizer" else 0.0
    return (memory.learner_gib + memory.reference_gib - hosted_gib) / recipe.learner.ranks


def resting_learner_gib(recipe: Recipe, memory: MemoryEstimate | None) -> float | None:
    """Return the least GPU memory that each rank keeps while engines use its GPU: all but the gradients.

    None if unknown.
    """
    least = least_learner_gib(recipe, memory, on_gpu=True)
    return None if least is None or memory is None else least - memory.gradients_gib / recipe.learner.ranks


def _parameters_in(folder: str | Path) -> _Counted:
    """Count the parameters in a folder's safetensors files, else by the model's config.json; 0 if neither is known."""
    shapes = [one for file in sorted(Path(folder).glob("*.safetensors")) for one in _shapes_of(file)]
    if shapes:
        in_8_bit = sum(math.prod(shape) for name, shape in shapes if in_blocks(name, shape))
        return _Counted(sum(math.prod(shape) for _, shape in shapes), in_8_bit)
    try:
        shape = find_shape(str(folder))[0]
    except InputError:
        return _Counted(0, 0)
    return _Counted(shape.parameters, shape.in_8_bit)


def _shapes_of(file: Path) -> list[tuple[str, tuple[int, ...]]]:
    try:
        return list(shapes_in(file).items())
    except ValueError as error:
        raise RecipeError(f"{file} {error}. Copy or download it again") from error
