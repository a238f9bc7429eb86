"""The learner's part of a checkpoint: trained parameters, optimizer, and the state of the rule."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from rlkl.errors import CheckpointError
from rlkl.learner.shards_on_disk import read_tensors, shapes_in, write_tensors
from rlkl.learner.stepping import Optimization
from rlkl.models.sharding import divided, like, local
from rlkl.updates.base import PolicyUpdate

TENSORS_FOLDER = "learner"
"""Holds ``trained.NAME`` for each parameter, and ``optimizer.NAME.KEY`` for each tensor of its optimizer state.

The names of averages are in `rlkl.learner.average`, those of earlier weights in `rlkl.learner.lagged`.
"""
NUMBERS_FILE = "learner.json"
OLD_FILE = "learner.pt"
"""All of the state in one file, as earlier versions wrote it."""

_TRAINED, _OPTIMIZER = "trained.", "optimizer."
_UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError, CheckpointException)


@dataclass(slots=True, kw_only=True)
class LearnerState:
    """The state that a resume needs beside the model that the run started from."""

    optimization: Optimization
    update: PolicyUpdate
    finished_steps: int = 0
    """Training steps that are in the weights."""

    def save(self, folder: Path) -> None:
        """Write `TENSORS_FOLDER` and `NUMBERS_FILE`; raises `LearnerError` if an optimizer step broke off half-way.

        Every rank must call it; each writes its own shards. The files are complete when all ranks have returned.
        """
        self.optimization.check_whole()
        ranks = self.optimization.ranks
        write_tensors(state_tensors(self.optimization), folder / TENSORS_FOLDER, alone=ranks.size == 1)
        if ranks.rank == 0:
            numbers = {
                "optimizer_steps": self.optimization.steps,
                "finished_steps": self.finished_steps,
                "update": self.update.state(),
            }
            (folder / NUMBERS_FILE).write_text(json.dumps(numbers, indent=1) + "\n")

    def restore(self, folder: Path) -> None:
        """Load the state that `save` wrote, with any number of ranks, or the file of an earlier version.

        Every rank must call it. Raises `CheckpointError` if the state is of another model, or damaged.
        """
        restore = _restore_old if (folder / OLD_FILE).is_file() else _restore
        try:
            numbers = restore(self.optimization, folder)
        except _UNREADABLE as error:
            raise CheckpointError(
                f"the learner's state in {folder} cannot be read; it is damaged ({error!r}). Remove {folder} to go on "
                "from an older checkpoint"
            ) from error
        self.optimization.steps = numbers["optimizer_steps"]
        self.finished_steps = numbers["finished_steps"]
        self.update.load_state(numbers["update"])


def state_tensors(optimization: Optimization) -> dict[str, Tensor]:
    """Return parameters and optimizer state by their names on disk; shards for parameters that are sharded."""
    found: dict[str, Tensor] = {}
    for name, part in optimization.trained.items():
        parameter = optimization.parameters[name]
        found[f"{_TRAINED}{name}"] = like(parameter, part.detach())
        for key, tensor in optimization.optimizer.kept(part).items():
            found[f"{_OPTIMIZER}{name}.{key}"] = like(parameter, tensor) if tensor.ndim else tensor
    return found | optimization.followers.on_disk(optimization.parameters)


def _restore(optimization: Optimization, folder: Path) -> Mapping[str, Any]:
    path = folder / TENSORS_FOLDER
    numbers = json.loads((folder / NUMBERS_FILE).read_text())
    shapes = shapes_in(path)
    _check(optimization, {n.removeprefix(_TRAINED): s for n, s in shapes.items() if n.startswith(_TRAINED)}, path)
    optimization.followers.check(shapes, path)
    _begin_state(optimization, (n.removeprefix(_OPTIMIZER) for n in shapes if n.startswith(_OPTIMIZER)))
    read_tensors(state_tensors(optimization), path, alone=optimization.ranks.size == 1)
    optimization.write_back()
    return numbers


def _begin_state(optimization: Optimization, names: Iterable[str]) -> None:
    """Give the optimizer zeros for each saved tensor ``NAME.KEY`` of its state."""
    keys: dict[str, set[str]] = {}
    for name, _, key in (one.rpartition(".") for one in names):
        keys.setdefault(name, set()).add(key)
    optimization.optimizer.state.clear()
    for name, saved in keys.items():
        if (wanted := set(optimization.begin_state(name))) != saved:
            raise CheckpointError(
                f"the checkpoint was written with another learner.optimizer: for {name} it holds {_listed(saved)}, and "
                f"this one keeps {_listed(wanted)}. Resume with the optimizer of that run."
            )


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))


def _restore_old(optimization: Optimization, folder: Path) -> Mapping[str, Any]:
    """Load the one file of an earlier version: whole tensors, optimizer state by the parameters' numbers."""
    path = folder / OLD_FILE
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    _check(optimization, {name: tuple(tensor.shape) for name, tensor in saved["trained"].items()}, path)
    optimization.followers.check((), path)
    names = {parameter: name for name, parameter in optimization.trained.items()}
    numbered: list[nn.Parameter] = [p for group in optimization.optimizer.param_groups for p in group["params"]]
    tensors = {f"{_TRAINED}{name}": tensor for name, tensor in saved["trained"].items()}
    for number, state in saved["optimizer"]["state"].items():
        name = names[numbered[number]]
        tensors |= {f"{_OPTIMIZER}{name}.{key}": tensor for key, tensor in state.items()}
    _begin_state(optimization, (n.removeprefix(_OPTIMIZER) for n in tensors if n.startswith(_OPTIMIZER)))
    with torch.no_grad():
        for name, target in state_tensors(optimization).items():
            local(target).copy_(local(divided(target, tensors[name])))
    optimization.write_back()
    return saved


def _check(optimization: Optimization, saved: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Raise `CheckpointError` unless the saved parameters are those that are trained, in name and shape."""
    wanted = {name: tuple(parameter.shape) for name, parameter in optimization.parameters.items()}
    if saved != wanted:
        difference = sorted(name for name in saved.keys() | wanted.keys() if saved.get(name) != wanted.get(name))
        raise CheckpointError(
            f"{path} holds other parameters than this recipe trains; they differ in "
            f"{', '.join(difference[:3])} ({len(difference)} in all). Resume with the recipe of that run."
        )
