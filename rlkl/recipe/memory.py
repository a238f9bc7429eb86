"""Memory for weights and optimizer, estimated from the shapes in a checkpoint or from the model's config.json."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rlkl.costs.find import parameters_of
from rlkl.recipe import Recipe
from rlkl.updates.passes import passes_of

_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """GiB (2**30 bytes) for weights and optimizer. Activations come on top."""

    parameters: int
    learner_gib: float
    reference_gib: float
    """Weights of all frozen models of the learner: the reference, and those of ``models``."""
    engine_gib: float
    """Weights of each engine, without its key-value cache."""
    copy_gib: float
    """In host memory, with several optimizer steps a batch: weights and moments, to undo a step that fails."""


def estimate_memory(recipe: Recipe, folder: str | Path, frozen: Iterable[str | Path]) -> MemoryEstimate | None:
    """Estimate from the model's folder, or from its name on the hub; None if its size is not known on this machine.

    ``frozen``: the folders or names of the recipe's ``models``.
    """
    parameters = _parameters_in(folder)
    if not parameters:
        return None
    # All in float32: weight, gradient and two Adam moments; in bfloat16 also the weight that computes.
    all_bytes = 8 + _moment_bytes(recipe) + (2 if recipe.model.dtype == "bfloat16" else 0)
    critics = passes_of(recipe.update, optimizer_steps=1).critics
    trained_bytes = (all_bytes if recipe.model.lora is None else 4) + critics * all_bytes
    wants_reference = recipe.learner.track_reference_kl or recipe.update.needs_reference_model
    has_copy = wants_reference and (recipe.model.lora is None or recipe.model.reference is not None)
    frozen_parameters = sum(map(_parameters_in, frozen))
    several_steps = recipe.learner.epochs * recipe.learner.minibatches > 1
    gib = parameters / 2**30
    return MemoryEstimate(
        parameters=parameters,
        learner_gib=trained_bytes * gib,
        reference_gib=_BYTES[recipe.model.dtype] * ((gib if has_copy else 0.0) + frozen_parameters / 2**30),
        engine_gib=_BYTES[recipe.model.dtype] * gib,
        copy_gib=(4 + _moment_bytes(recipe)) * gib * (critics + (recipe.model.lora is None)) if several_steps else 0.0,
    )


def _moment_bytes(recipe: Recipe) -> int:
    """Return the least bytes of both moments of a parameter."""
    return 2 if recipe.learner.optimizer == "adamw_8bit" else 8


def least_learner_gib(recipe: Recipe, memory: MemoryEstimate | None) -> float | None:
    """Return the least memory that each rank of the learner can need, its share of weights, gradients and moments.

    None if unknown (adapters and frozen parts need less).
    """
    if memory is None or recipe.model.lora is not None or recipe.model.freeze_vision:
        return None
    hosted = _moment_bytes(recipe) * memory.parameters / 2**30 if recipe.learner.offload == "optimizer" else 0.0
    return (memory.learner_gib + memory.reference_gib - hosted) / recipe.learner.ranks


def _parameters_in(folder: str | Path) -> int:
    """Count the parameters in a folder's safetensors files, else by the model's config.json; 0 if neither is known."""
    counted = sum(_count_parameters(file) for file in sorted(Path(folder).glob("*.safetensors")))
    return counted or parameters_of(str(folder))


def _count_parameters(file: Path) -> int:
    """Count by the header of a safetensors file: 8 bytes of length (little-endian), then JSON."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
