"""The header of the page: what the runs have in common, and a row for each arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlkl.analysis.report.curves import KL, headlines
from rlkl.analysis.report.labels import short_labels, telling_keys
from rlkl.analysis.report.numbers import MISSING, last_value, over_seeds
from rlkl.analysis.runs import Arm, RunFolder
from rlkl.recipe.core_yaml import write_value

_COMMON = ("update.rule", "update.variant", "model.path", "data.source", "learner.lr", "steps")


def arms_table(arms: Sequence[Arm], watch: Mapping[str, int]) -> dict[str, Any]:
    """Return columns and a row of cells for each arm; ``watch``: signals that set in, by path of the run."""
    runs = [run for arm in arms for run in arm.runs]
    keys = telling_keys(arms)
    keys = keys if len(keys) > 1 else []  # the only key is in the name of the arm
    logged = dict.fromkeys(key for run in runs for record in run.metrics[-1:] for key in record)
    monitors = [key for key in headlines(logged) if key.startswith("monitor/")]
    evaluated = any(run.evaluations for run in runs)
    columns = ["", *(key.rpartition(".")[2] for key in keys), "seed", "steps", "reward", *monitors, "KL"]
    columns += [*(["eval/mean"] if evaluated else []), "watch", "step seconds"]
    rows = []
    for arm, name in zip(arms, short_labels(arms), strict=True):
        cells = [name, *(write_value(arm.values[key]) if key in arm.values else MISSING for key in keys)]
        cells += [", ".join(str(run.seed) for run in arm.runs), _steps(arm)]
        cells += [over_seeds([last_value(run, key) for run in arm.runs]) for key in ("reward/mean", *monitors, KL)]
        if evaluated:
            cells.append(over_seeds([run.evaluations[-1].get("eval/mean") for run in arm.runs if run.evaluations]))
        tripped = sum(watch.get(str(run.path), 0) for run in arm.runs)
        cells += [str(tripped) if tripped else "quiet", f"{_step_seconds(arm):,.0f}"]
        rows.append(cells)
    return {"columns": columns, "titles": ["", *keys, *[""] * (len(columns) - 1 - len(keys))], "rows": rows}


def common_facts(runs: Sequence[RunFolder]) -> list[tuple[str, str]]:
    """Return the main keys of the recipes whose value is the same in all runs."""
    found = []
    for key in _COMMON:
        values = {_value(run.recipe, key) for run in runs}
        if len(values) == 1 and None not in values:
            found.append((key.rpartition(".")[2] if key != "model.path" else "model", str(*values)))
    return found


def _value(recipe: Mapping[str, Any], key: str) -> str | None:
    value: Any = recipe
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return None if value is None else value if isinstance(value, str) else write_value(value)


def _steps(arm: Arm) -> str:
    """Return the steps that an arm's runs have made, and how many runs have come to their end if not all have."""
    made = dict.fromkeys(int(run.metrics[-1]["step"]) if run.metrics else 0 for run in arm.runs)
    finished = sum(run.is_finished for run in arm.runs)
    text = ", ".join(map(str, made))
    return text if finished == len(arm.runs) else f"{text} ({finished} of {len(arm.runs)} finished)"


def _step_seconds(arm: Arm) -> float:
    """Return the seconds of all steps of a run, mean over the runs."""
    totals = [sum(record.get("time/step_s", 0.0) for record in run.metrics) for run in arm.runs]
    return sum(totals) / len(totals)
