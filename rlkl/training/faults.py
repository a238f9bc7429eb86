"""Steps with a number that is not finite: keep the batch, then stop the run or skip the step (``learner.on_fault``).

A fault is a folder ``faults/step_000012`` of the run: ``fault.json`` with the error, ``batch.json`` with the
examples and their prompts, and ``checkpoint`` with the learner before the step. `rlkl inspect` makes the step again.
"""

from __future__ import annotations

import base64
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from rlkl.errors import InputError, NumericalFault, RlklError
from rlkl.training.hands import Hands
from rlkl.training.pending import plain_rollout, read_rollout
from rlkl.types import Example, Image, Learned, Probe, Prompt, Selection, step_number

logger = logging.getLogger(__name__)

FOLDER = "faults"
SKIPPED = "optim/fault"
"""Metric: 1 in a step that was skipped for a number that is not finite."""
IN_A_ROW = 3
"""So many faults one after another stop the run even if they are to be skipped."""
_FAULT, _BATCH, _CHECKPOINT = "fault.json", "batch.json", "checkpoint"
_KEPT = 3
"""Faults of a run whose learner is kept; later ones keep their batch alone."""


@dataclass(slots=True, kw_only=True)
class Faults:
    """Lets the learner train, and handles a step with a number that is not finite."""

    run_dir: Path
    on_fault: Literal["stop", "skip"]
    hands: Hands
    _in_a_row: int = 0

    def learn(self, selection: Selection, *, step: int, probes: Sequence[Probe], samples: bool) -> Learned:
        """Train on a selection; see `rlkl.training.hands.LearnerHandle.learn`.

        Raises `NumericalFault`, with a note on the kept batch, if the run is to stop, or after `IN_A_ROW` such steps.
        """
        learner = self.hands.learner
        try:
            learned = learner.learn(selection, step=step, probes=probes, samples=samples)
            fault, self._in_a_row = 0.0, 0
        except NumericalFault as error:
            self._in_a_row += 1
            kept = self._keep(selection, error, step)
            if self.on_fault == "stop" or self._in_a_row == IN_A_ROW:
                error.add_note(f"{kept} Look into it with: rlkl inspect {self._folder(step)}")
                if self.on_fault == "skip":
                    error.add_note(f"This was the last of {IN_A_ROW} such steps in a row, so the run ends.")
                raise
            logger.warning("step %d is skipped: %s %s", step_number(step), error, kept)
            nothing = replace(selection, examples=(), left_out=())
            learned, fault = learner.learn(nothing, step=step, probes=probes, samples=samples), 1.0
        return replace(learned, metrics={**learned.metrics, SKIPPED: fault})

    def _folder(self, step: int) -> Path:
        return self.run_dir / FOLDER / f"step_{step_number(step):06d}"

    def _keep(self, selection: Selection, error: NumericalFault, step: int) -> str:
        """Write the fault's folder; return a sentence about it. A folder that cannot be written hides no error."""
        folder = self._folder(step)
        try:
            shutil.rmtree(folder, ignore_errors=True)
            before = len(list(folder.parent.glob(f"step_*/{_CHECKPOINT}")))
            (folder / _CHECKPOINT).mkdir(parents=True)
            write_fault(folder, selection, step=step, message=str(error))
            if before >= _KEPT:
                (folder / _CHECKPOINT).rmdir()
                return f"Its batch is kept in {folder}, without the learner: {_KEPT} of them are kept."
            self.hands.learner.save(folder / _CHECKPOINT)
        except (OSError, RlklError) as problem:
            return f"Its batch could not be kept in {folder} ({problem})."
        return f"Its batch is kept in {folder}."


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFault:
    """A fault as it was kept."""

    step: int
    """Index of the step."""
    message: str
    examples: Sequence[Example]
    left_out: Sequence[Example]
    checkpoint: Path | None
    """The learner before the step; None: it was not kept."""


def write_fault(folder: Path, selection: Selection, *, step: int, message: str) -> None:
    """Write the error and the batch, prompts and pictures included, as JSON."""
    batch = {"examples": _plain(selection.examples), "left_out": _plain(selection.left_out)}
    (folder / _BATCH).write_text(json.dumps(batch) + "\n")
    (folder / _FAULT).write_text(json.dumps({"step": step, "message": message}, indent=1) + "\n")


def read_fault(folder: Path) -> KeptFault:
    """Read what `write_fault` wrote; raises `InputError` if the folder holds no fault."""
    try:
        fault = json.loads((folder / _FAULT).read_text())
        batch = json.loads((folder / _BATCH).read_text())
        checkpoint = folder / _CHECKPOINT
        return KeptFault(
            step=fault["step"],
            message=fault["message"],
            examples=[_example(values) for values in batch["examples"]],
            left_out=[_example(values) for values in batch["left_out"]],
            checkpoint=checkpoint if checkpoint.is_dir() else None,
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{folder} holds no fault of a run ({error!r}); expected a folder such as runs/NAME/{FOLDER}/step_000012"
        ) from error


def _plain(examples: Sequence[Example]) -> list[dict[str, Any]]:
    return [
        {field.name: getattr(example, field.name) for field in fields(example)}
        | {"prompt": _plain_prompt(example.prompt), "rollout": plain_rollout(example.rollout)}
        for example in examples
    ]


def _plain_prompt(prompt: Prompt) -> dict[str, Any]:
    images = [
        {"data": base64.b64encode(one.data).decode(), "width": one.width, "height": one.height, "key": one.key}
        for one in prompt.images
    ]
    return {
        "id": prompt.id,
        "text": prompt.text,
        "token_ids": prompt.token_ids,
        "images": images,
        "wordings": dict(prompt.wordings),
    }


def _example(values: Mapping[str, Any]) -> Example:
    prompt = dict(values["prompt"])
    images = tuple(Image(**{**one, "data": base64.b64decode(one["data"])}) for one in prompt["images"])
    wordings = {column: tuple(token_ids) for column, token_ids in prompt.get("wordings", {}).items()}
    prompt |= {"token_ids": tuple(prompt["token_ids"]), "images": images, "wordings": wordings}
    return Example(**{**values, "prompt": Prompt(**prompt), "rollout": read_rollout(values["rollout"])})
