"""The curves of runs: every logged metric, thinned, with its definition."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from rlkl.analysis.report.numbers import short
from rlkl.analysis.runs import Record, RunFolder
from rlkl.tracking.hacking.signals import WINDOW
from rlkl.tracking.metrics.registry import RULE_METRICS, find_definition

POINTS = 400
"""Points of a curve; each is the mean of as many steps as needed."""
FRONTIER_POINTS = 150
KL = "kl/policy_to_reference"
HEADLINES = (
    "reward/mean",
    "monitor/",
    KL,
    "entropy/policy",
    "optim/grad_norm",
    "rollout/mismatch_max",
    "rollout/length_mean",
    "rollout/tokens_per_s",
)
"""The rows of the console; one that ends with a slash stands for all metrics of that family without components."""
FAMILIES = (
    "reward", "monitor", "kl", "entropy", "loss", "update", "", "term", "rule", "watch", "rollout", "similarity",
    "correction", "optim", "weights", "throughput", "time", "data",
)  # fmt: skip
"""The order of families; those of single rules are at the empty name."""


def steps_per_point(runs: Sequence[RunFolder]) -> int:
    """Return how many steps a point of a curve averages: the same for all runs, so that seeds can be compared."""
    longest = max((int(run.metrics[-1]["step"]) for run in runs if run.metrics), default=0)
    return max(math.ceil(longest / POINTS), 1)


def thinned(records: Sequence[Record], width: int) -> list[Record]:
    """Average each ``width`` steps into one record, which has the number of its last step."""
    if width == 1:
        return list(records)
    bins: dict[int, list[Record]] = {}
    for record in records:
        bins.setdefault((int(record["step"]) - 1) // width, []).append(record)
    return [_mean_record(found) for found in bins.values()]


def _mean_record(records: Sequence[Record]) -> Record:
    keys = dict.fromkeys(key for record in records for key in record)
    means = {key: fmean(record[key] for record in records if key in record) for key in keys}
    return means | {"step": records[-1]["step"]}


def described(key: str) -> dict[str, Any]:
    """Return unit, formula and bad values of a metric; empty texts if it has no definition."""
    found = find_definition(key)
    if found is None:
        return {"unit": "", "formula": "", "bad": ""}
    return {"unit": found.unit, "formula": found.formula, "bad": found.bad}


def curves(runs: Sequence[RunFolder]) -> dict[str, Any]:
    """Return ``steps`` of each run, and for each metric its definition and the values of each run that logs it."""
    width = steps_per_point(runs)
    records = [thinned(run.metrics, width) for run in runs]
    keys = sorted({key for of_run in records for record in of_run for key in record} - {"step"}, key=_place)
    metrics = {}
    for key in keys:
        series = {
            number: [short(record.get(key)) for record in of_run]
            for number, of_run in enumerate(records)
            if any(key in record for record in of_run)
        }
        metrics[key] = {**described(key), "values": series}
    steps = [[int(record["step"]) for record in of_run] for of_run in records]
    return {"steps": steps, "metrics": metrics, "width": width}


def headlines(keys: Iterable[str]) -> list[str]:
    """Return the metrics that come first on the page."""
    known = list(keys)
    found = []
    for wanted in HEADLINES:
        if wanted.endswith("/"):
            found += [key for key in known if key.startswith(wanted) and key.count("/") == 1]
        elif wanted in known:
            found.append(wanted)
    return found


def rule_metrics(runs: Sequence[RunFolder], keys: Sequence[str]) -> dict[str, list[str]]:
    """Return the rules of the runs, and their own metrics among ``keys``, clocks left out."""
    rules = list(dict.fromkeys(str(run.recipe.get("update", {}).get("rule", "")) for run in runs))
    own = [one for rule in rules for one in RULE_METRICS.get(rule, ()) if not one.timing]
    found = [key for key in keys if key.startswith("rule/") or any(definition.matches(key) for definition in own)]
    return {"names": rules, "keys": found}


def families(keys: Iterable[str]) -> dict[str, list[str]]:
    """Group metrics by the part of their key before the first slash."""
    grouped: dict[str, list[str]] = {}
    for key in keys:
        grouped.setdefault(key.partition("/")[0], []).append(key)
    return grouped


def frontiers(runs: Sequence[RunFolder]) -> list[dict[str, Any]]:
    """Return the points ``[run, step, KL, value]`` of the reward and of each monitor over the KL.

    Training curves are noisy, so each point is a mean of the last steps up to it. Evaluations are points as they are.
    """
    keys = dict.fromkeys(key for run in runs for record in run.metrics[:1] for key in record)
    wanted = [key for key in headlines(keys) if key == "reward/mean" or key.startswith("monitor/")]
    found = [_frontier(KL, key, [_smoothed(run.metrics, KL, key) for run in runs]) for key in wanted]
    evaluated = dict.fromkeys(key for run in runs for record in run.evaluations for key in record)
    scores = [key for key in evaluated if key == "eval/mean" or _is_score(key, wanted)]
    found += [_frontier("eval/kl", key, [_pairs(run.evaluations, "eval/kl", key) for run in runs]) for key in scores]
    return [frontier for frontier in found if frontier["points"]]


def _is_score(key: str, wanted: Sequence[str]) -> bool:
    return f"monitor/{key.removeprefix('eval/')}" in wanted


def _frontier(x: str, y: str, by_run: Sequence[Sequence[tuple[int, float, float]]]) -> dict[str, Any]:
    points = [
        [number, step, short(kl), short(value)] for number, found in enumerate(by_run) for step, kl, value in found
    ]
    return {"x": x, "y": y, "xunit": described(x)["unit"], **described(y), "points": points}


def _pairs(records: Sequence[Record], x: str, y: str) -> list[tuple[int, float, float]]:
    return [(int(record["step"]), record[x], record[y]) for record in records if x in record and y in record]


def _smoothed(records: Sequence[Record], x: str, y: str) -> list[tuple[int, float, float]]:
    """Average over the last steps up to each, and keep at most `FRONTIER_POINTS`, the last one included.

    A run of fewer than two windows is returned as it is.
    """
    pairs = _pairs(records, x, y)
    window = WINDOW if len(pairs) >= 2 * WINDOW else 1
    means = [_mean_pair(pairs[end - window : end]) for end in range(window, len(pairs) + 1)]
    stride = max(math.ceil(len(means) / FRONTIER_POINTS), 1)
    return means[::-1][::stride][::-1]


def _mean_pair(pairs: Sequence[tuple[int, float, float]]) -> tuple[int, float, float]:
    return pairs[-1][0], fmean(pair[1] for pair in pairs), fmean(pair[2] for pair in pairs)


def evaluation_curves(runs: Sequence[RunFolder]) -> dict[str, Any]:
    """Return for each quantity of the held-out evaluations the points ``[step, value, standard error]`` of each run."""
    keys = dict.fromkeys(key for run in runs for record in run.evaluations for key in record)
    kept = [key for key in keys if key.startswith("eval/") and not key.endswith("_se")]
    return {key: {**described(key), "values": _evaluations(runs, key)} for key in kept}


def _evaluations(runs: Sequence[RunFolder], key: str) -> Mapping[int, list[list[float | None]]]:
    found = {
        number: [
            [int(record["step"]), short(record[key]), short(record.get(f"{key}_se"))]
            for record in run.evaluations
            if key in record
        ]
        for number, run in enumerate(runs)
    }
    return {number: points for number, points in found.items() if points}


def _place(key: str) -> tuple[int, str, str]:
    family = key.partition("/")[0]
    return (FAMILIES.index(family if family in FAMILIES else ""), family, key)
