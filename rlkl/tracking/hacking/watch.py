"""The hacking watch: reads each step's record and samples, measures the signals, and keeps suspects.

Its state is the records: a signal's level there decides whether it is still on (`rlkl.tracking.alarms`), so a resumed
run goes on as it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

from rlkl.recipe import Recipe, TrackingSection
from rlkl.tracking.alarms import WATCH_WARNINGS, Alarms, warn_of
from rlkl.tracking.hacking.signals import Reading, Record, read_signals, spread_key
from rlkl.tracking.records.suspicious import Suspect, monitor_score, most_suspicious, repetition, reward_of
from rlkl.types import Rollout, RolloutGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """The watch's result for a step."""

    metrics: dict[str, float]
    set_in: Mapping[str, Reading]
    """The signals that were off before this step and are on now."""
    suspects: Mapping[str, Sequence[Suspect]]
    """For each of them, the samples that show it best."""


class HackingWatch:
    """Watches one run."""

    def __init__(self, recipe: Recipe, records: Sequence[Record]) -> None:
        """Start the watch of a run; a resumed run passes the ``records`` of its earlier steps."""
        self._settings: TrackingSection = recipe.tracking
        self._unweighted = unweighted_rewards(recipe)
        self._alarms = Alarms()
        for record in records:
            self._alarms.measure(levels_of(record))

    def look(self, records: Sequence[Record], record: Record, groups: Sequence[RolloutGroup]) -> Sighting:
        """Judge the step of ``record``, which follows ``records``; return the signals that begin in it."""
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        monitors = self._monitors(rollouts)
        measured = _measured(rollouts, monitors)
        everything = [*records, {**record, **measured}]
        readings = read_signals(everything, monitors)
        levels = {name: reading.level / self._settings.hacking_tolerance for name, reading in readings.items()}
        set_in = {name: readings[name] for name in self._alarms.measure(levels)}
        metrics = {**measured, **{f"watch/{name}": level for name, level in levels.items()}}
        metrics[WATCH_WARNINGS] = float(len(set_in))
        kept = self._settings.suspicious_kept
        suspects = {name: most_suspicious(name, groups, everything, monitors, kept) for name in set_in}
        return Sighting(metrics=metrics, set_in=set_in, suspects=suspects)

    def _monitors(self, rollouts: Sequence[Rollout]) -> dict[str, str]:
        """Return the metric of each monitor, by its name; components (``<name>/<component>``) are left out."""
        names = dict.fromkeys(name for rollout in rollouts for name in rollout.monitors if "/" not in name)
        unweighted = dict.fromkeys(n for rollout in rollouts for n in rollout.components if n in self._unweighted)
        return {name: f"monitor/{name}" for name in names} | {name: f"reward/{name}" for name in unweighted}


def warn(sighting: Sighting, finished: int, place: str) -> dict[str, str]:
    """Warn about the signals that begin at a step, and return the warnings by signal.

    ``place``: the file with their suspects.
    """
    end = f"The most suspicious samples are in {place}"
    findings = {name: reading.finding for name, reading in sighting.set_in.items()}
    texts = {name: f"step {finished}, hacking watch, {name}: {found}. {end}" for name, found in findings.items()}
    warn_of(texts)
    return texts


def unweighted_rewards(recipe: Recipe) -> frozenset[str]:
    """Return the names of the rewards with weight 0, which are logged and never optimised."""
    sections = [section for section in recipe.rewards if section.weight == 0]
    return frozenset(section.name or section.function.rpartition(":")[2].rpartition("/")[2] for section in sections)


def levels_of(record: Record) -> dict[str, float]:
    """Return the signals' levels in a record, by signal."""
    names = {key: key.removeprefix("watch/") for key in record if key.startswith("watch/") and key != WATCH_WARNINGS}
    return {name: record[key] for key, name in names.items() if not name.startswith("spread/")}


def _measured(rollouts: Sequence[Rollout], monitors: Mapping[str, str]) -> dict[str, float]:
    """Compute the inputs of the signals that are not metrics of the step."""
    metrics = {"rollout/repetition": fmean(repetition(rollout.completion.token_ids) for rollout in rollouts)}
    scores = {"reward": [reward_of(rollout) for rollout in rollouts]}
    scores |= {name: [monitor_score(rollout, name) for rollout in rollouts] for name in monitors}
    for name, values in scores.items():
        finite = [value for value in values if math.isfinite(value)]
        if finite:
            metrics[spread_key(name)] = pstdev(finite)
    return metrics
