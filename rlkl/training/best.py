"""The best policy of a run by one metric (``checkpoint.best``): the folder ``best`` beside ``policy``."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlkl.errors import CheckpointError, RecipeError, did_you_mean
from rlkl.training.checkpoint import remove_folder
from rlkl.training.pending import Pending
from rlkl.training.saving import Saver

logger = logging.getLogger(__name__)

BEST_FILE = "rlkl_best.json"
"""In the folder ``best``: the metric, its value, and the step."""


@dataclass(slots=True, kw_only=True)
class Best:
    """Keeps the policy with the largest value of a metric. Of equal values the first stays."""

    metric: str | None
    """None: nothing is kept."""
    saver: Saver
    every: int
    """Steps between two checkpoints, at which a metric of training is looked at."""
    step: int | None = field(default=None, init=False)
    value: float = field(default=float("-inf"), init=False)
    _seen: int = field(default=0, init=False)
    _last: float = field(default=float("nan"), init=False)
    _known: bool = field(default=False, init=False)
    """Whether the metric was measured once. Later it may be missing, if no sample has a score."""

    @property
    def folder(self) -> Path:
        """The folder of the policy, which Hugging Face's libraries can load."""
        return self.saver.run_dir / "best"

    @property
    def is_of_evaluations(self) -> bool:
        """Whether the metric is measured by evaluations, rather than in training."""
        return self.metric is not None and self.metric.startswith("eval/")

    def resume(self, finished: int, records: Sequence[Mapping[str, float]]) -> None:
        """Read what an earlier part of the run kept; forget it if it is of a step that will be made again.

        A run that was killed after the checkpoint of its best step, and before the copy of the policy, keeps it now.

        ``records``: those of the metric so far.

        Raises `CheckpointError` if the record cannot be read.
        """
        if self.metric is None:
            return
        looked_at = [one for one in records if self.is_of_evaluations or one["step"] % self.every == 0]
        measured = [record for record in looked_at if self.metric in record]
        values = [record[self.metric] for record in measured]
        self._known = bool(values)
        self._seen, self._last = len(values), values[-1] if values else float("nan")
        if records and records[0]["step"] == 0 and self.metric in records[0]:
            self.step, self.value = 0, records[0][self.metric]
        if (self.folder / BEST_FILE).is_file():
            self._read(self.folder / BEST_FILE, finished)
        if measured and measured[-1]["step"] == finished and self._last > max([self.value, *values[:-1]]):
            self._keep(finished, self._last)

    def _read(self, path: Path, finished: int) -> None:
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            metric, step, value = kept["metric"], int(kept["step"]), float(kept["value"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); remove {self.folder} to go on") from error
        if metric != self.metric or step > finished:
            why = f"is the best by {metric}" if metric != self.metric else f"is of step {step}, which is made again"
            logger.warning("%s %s; the best policy is looked for from here on", self.folder, why)
            remove_folder(self.folder)
            return
        self.step, self.value = step, value

    def check(self, metrics: Mapping[str, float]) -> bool:
        """Return whether the metric was measured; raise `RecipeError` if it never was so far."""
        if self.metric is None:
            return False
        found = self.metric in metrics
        if not found and not self._known:
            raise RecipeError(
                f"checkpoint.best = {self.metric!r} is no metric of this run; {did_you_mean(self.metric, metrics)}"
            )
        self._known = True
        return found

    def trained(self, step: int, metrics: Mapping[str, float], pending: Callable[[], Pending], *, saved: bool) -> None:
        """Look at a training step, if its metrics decide: check the name, and `consider` steps with a checkpoint.

        Raises `RecipeError` if the metric was never measured.
        """
        if not self.is_of_evaluations and self.check(metrics) and saved:
            self.consider(step, metrics, pending)

    def consider(self, step: int, metrics: Mapping[str, float], pending: Callable[[], Pending]) -> None:
        """Keep the policy after ``step`` steps if its value is larger than all before.

        A checkpoint of the step is written first, so that a resume never goes back behind the best. The policy before
        the first step is the model that the recipe names, and is not copied.

        Raises `RecipeError` if the metric was never measured.
        """
        if self.metric is None or not self.check(metrics):
            return
        value = metrics[self.metric]
        self._seen, self._last = self._seen + 1, value
        if value <= self.value:
            return
        if step > 0:
            self.saver.save_once(step, pending())
            self._keep(step, value)
        else:
            self.step, self.value = step, value

    def _keep(self, step: int, value: float) -> None:
        """Copy the policy of the newest checkpoint, which is of this step, to the folder of the best."""
        self.step, self.value = step, value
        record = {"metric": self.metric, "value": value, "step": step}
        aside = self.saver.copy_policy(".writing-best")
        (aside / BEST_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if self.folder.exists():
            remove_folder(self.folder)
        aside.rename(self.folder)

    def summary(self) -> str | None:
        """Return a sentence for the end of the run; None if nothing is kept."""
        if self.metric is None or self.step is None:
            return None
        where = f"{self.folder}" if self.step else "the model that the run started from"
        return (
            f"{where}: {self.metric} {self.value:.4g} at step {self.step}, last {self._last:.4g}; the best of "
            f"{self._seen} is an optimistic estimate"
        )
