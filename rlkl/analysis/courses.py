"""KL and figure over the steps of runs, measured the same way in all runs of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlkl.analysis.frontier import WINDOW, Course
from rlkl.analysis.runs import Record, RunFolder

KL_OF_TRAINING = "kl/policy_to_reference"
KL_OF_EVALUATION = "eval/kl"
FEWEST_EVALUATIONS = 4
"""With fewer evaluations during training the courses are those of the metrics of training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Courses:
    """The courses of runs. Their figure may be another one than that of the ends of the runs, so it has a name."""

    figure: str = ""
    """The figure and its prompts: ``monitor/gold on training prompts``. Empty if no run has a course."""
    kl: str = ""
    """The KL of the same steps."""
    by_folder: Mapping[Path, Course] = field(default_factory=dict)


def courses_of(runs: Sequence[RunFolder], y: str, x: str, *, is_of_sweep: bool) -> Courses:
    """Return KL and figure over the steps of each run: of its evaluations, else of the metrics of training.

    The evaluations are taken if at least as many runs have enough of them as have metrics of training.
    ``is_of_sweep``: the compared figures are from the evaluation of the sweep, whose prompts are others.
    """
    found = [_of_evaluations(runs, y, is_of_sweep), _of_training(runs, y, x)]
    return max(found, key=lambda courses: len(courses.by_folder))


def _of_evaluations(runs: Sequence[RunFolder], y: str, is_of_sweep: bool) -> Courses:
    found = {}
    for run in runs:
        records = [record for record in run.evaluations if y in record and KL_OF_EVALUATION in record]
        if len(records) >= FEWEST_EVALUATIONS:
            found[run.path] = _course(records, (KL_OF_EVALUATION, y), first=0, window=1)
    where = " during training" if is_of_sweep else ""
    return Courses(figure=y + where, kl=KL_OF_EVALUATION + where, by_folder=found) if found else Courses()


def _of_training(runs: Sequence[RunFolder], y: str, x: str) -> Courses:
    """Return the courses of the metrics of training, to be smoothed.

    ``eval/NAME`` is ``monitor/NAME`` or ``reward/NAME`` in training. A run on stored pairs samples nothing, so the KL
    of its training is not that of the policy, and it has no course.
    """
    name = y.removeprefix("eval/")
    keys = [y] if name == y else [f"monitor/{name}", f"reward/{name}"]
    kl = KL_OF_TRAINING if x.startswith("eval/") else x
    found, used = {}, []
    for run in runs:
        for key in keys:
            records = [r for r in run.metrics if key in r and kl in r and "rollout/length_mean" in r]
            if len(records) >= WINDOW:
                found[run.path] = _course(records, (kl, key), first=1, window=WINDOW)
                used.append(key)
                break
    figure = " or ".join(dict.fromkeys(used))
    where = "" if name == y else " on training prompts"
    return Courses(figure=figure + where, kl=kl, by_folder=found) if found else Courses()


def _course(records: Sequence[Record], keys: tuple[str, str], *, first: int, window: int) -> Course:
    """Return a course; ``first``: the step of the record that is of the untrained policy."""
    kl, figure = keys
    return Course(
        raw=[(record[kl], record[figure]) for record in records],
        window=window,
        start=records[0][figure] if records[0]["step"] == first else None,
    )
