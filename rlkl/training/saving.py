"""Checkpoints of a run, the exported policy, and saving after an error."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlkl.data.prompts import PromptSource
from rlkl.errors import ExportError
from rlkl.rewards import RewardSet
from rlkl.tracking.tracker import Tracker
from rlkl.training.checkpoint import Checkpoints, LoopState
from rlkl.training.hands import Hands
from rlkl.training.pending import Pending, write_pending
from rlkl.training.publish import Publisher


@dataclass(slots=True, kw_only=True)
class Saver:
    """Writes checkpoints and the final policy into the run's folder."""

    run_dir: Path
    keep: int
    hands: Hands
    publisher: Publisher
    source: PromptSource
    rewards: RewardSet
    tracker: Tracker
    processor: Any
    """Saved beside the policy: the tokenizer, for a vision-language model with its picture processor."""
    recipe_values: Mapping[str, Any]
    """The recipe as checkpoints keep it, with absolute paths."""
    fingerprints: Mapping[str, str]
    """Hashes of the recipe's models, rule and data columns, as checkpoints keep them."""
    checkpoints: Checkpoints = field(init=False)

    def __post_init__(self) -> None:
        self.checkpoints = Checkpoints(self.run_dir, keep=self.keep)

    def save_once(self, step: int, pending: Pending) -> None:
        """Write a checkpoint of the last finished step, unless it exists or no step has finished."""
        if step == 0 or self.checkpoints.has(step):
            return
        self.tracker.flush()
        state = LoopState(
            step=step,
            position=pending.position,
            run_id=self.tracker.run_id,
            reward_fingerprints=self.rewards.fingerprints,
            data_fingerprint=self.source.fingerprint,
            recipe=self.recipe_values,
            fingerprints=self.fingerprints,
        )
        with self.checkpoints.writing(state) as draft:
            write_pending(draft.folder, pending)
            self.processor.save_pretrained(draft.folder / "policy")
            draft.written |= self.hands.learner.save(draft.folder)

    def export(self) -> Path:
        """Copy the last checkpoint's policy to the run folder and prove that it is the learner's.

        Raises `ExportError`; the run folder then has no policy of these steps, and the checkpoint stays.
        """
        final, aside = self.run_dir / "policy", self.run_dir / ".writing-policy"
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint = self.checkpoints.latest()
        shutil.copytree(checkpoint / "policy", aside)
        try:
            self.hands.weights.check_export(aside, self.publisher.data_probes())
        except ExportError as error:
            raise ExportError(
                f"the exported policy is not what the learner holds, so {final} was not written: {error}. "
                f"The checkpoint {checkpoint} is complete; what was exported is in {aside}"
            ) from error
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        return final

    def advice(self, step: int, problem: BaseException | None) -> str:
        """Return the note for an error that ended the run: what is saved, and how to go on.

        ``problem``: the error that saving itself ended with, if it did.
        """
        if problem is None:
            note = f"All {step} finished steps are saved." if step else "No step was finished."
        elif step and self.checkpoints.has(step):
            note = f"All {step} recorded steps are saved; the learner does not answer ({problem})."
        else:
            note = f"The steps since the last checkpoint could not be saved ({problem})."
        if self.checkpoints.complete():
            note += f" Once the cause is removed, go on with: rlkl train --resume {self.run_dir}"
        return note
