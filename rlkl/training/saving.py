"""Checkpoints of a run, the exported policy, and saving after an error."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlkl.analysis.card.at_end import leave_card
from rlkl.data.prompts import PromptSource
from rlkl.errors import ExportError, RewardError
from rlkl.recipe.run_dir import start_anew
from rlkl.rewards import RewardSet
from rlkl.tracking.tracker import Tracker
from rlkl.training.checkpoint import Checkpoints, LoopState, remove_folder
from rlkl.training.curriculum import write_curriculum
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
            write_curriculum(draft.folder, self.source, position=pending.position)
            self.processor.save_pretrained(draft.folder / "policy")
            draft.written |= self.hands.learner.save(draft.folder)

    def export(self) -> Path:
        """Copy the last checkpoint's policy to the run folder, prove that it is the learner's, and leave a model card.

        Raises `ExportError`; the run folder then has no policy of these steps, and the checkpoint stays.
        """
        final, aside = self.run_dir / "policy", self.copy_policy(".writing-policy")
        checkpoint = self.checkpoints.latest()
        try:
            self.hands.weights.check_export(aside, self.publisher.data_probes())
        except ExportError as error:
            raise ExportError(
                f"the exported policy is not what the learner holds, so {final} was not written: {error}. "
                f"The checkpoint {checkpoint} is complete; what was exported is in {aside}"
            ) from error
        if final.exists():
            remove_folder(final)
        aside.rename(final)
        leave_card(self.run_dir)
        return final

    def copy_policy(self, name: str) -> Path:
        """Copy the policy of the newest checkpoint to the folder ``name`` of the run; return the copy."""
        copy = self.run_dir / name
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.checkpoints.latest() / "policy", copy)
        return copy

    def advice(self, step: int, error: BaseException, problem: BaseException | None) -> str:
        """Return the note for the error that ended the run: what is saved, and how to go on.

        ``problem``: the error that saving itself ended with, if it did.
        """
        if problem is None:
            note = f"All {step} finished steps are saved." if step else "No step was finished."
        elif step and self.checkpoints.has(step):
            note = f"All {step} recorded steps are saved; the learner does not answer ({problem})."
        else:
            note = f"The steps since the last checkpoint could not be saved ({problem})."
        if not self.checkpoints.complete():
            return f"{note} There is no checkpoint to go on from; start the run anew: {start_anew(self.run_dir)}"
        note += f" Once the cause is removed, go on with: rlkl train --resume {self.run_dir}"
        if isinstance(error, RewardError):
            skip = f"Add {shlex.quote(error.way_on)} to go on although the reward fails. " if error.way_on else ""
            note += f"\n{skip}Add --allow-changed-rewards if you have changed the reward. Changed data need a new run."
        return note
