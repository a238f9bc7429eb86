"""The recipes of the runs, and the keys in which they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlkl.analysis.report.numbers import MISSING
from rlkl.analysis.runs import Arm, RunFolder, leaves_of
from rlkl.recipe.core_yaml import write_value
from rlkl.recipe.run_dir import recipe_path

_OF_THE_FOLDER = ("run.name", "run.dir")
"""Keys that differ in every run, whatever its setting."""


def recipe_texts(arms: Sequence[Arm]) -> list[str]:
    """Return the text of ``recipe.yaml`` of the first run of each arm."""
    return [recipe_path(arm.runs[0].path).read_text(encoding="utf-8") for arm in arms]


def recipe_differences(runs: Sequence[RunFolder]) -> dict[str, Any]:
    """Return the keys in which the recipes of the runs differ, the seed included, with a value for each run."""
    leaves = [dict(leaves_of(run.recipe)) for run in runs]
    keys = dict.fromkeys(key for of_run in leaves for key in of_run if key not in _OF_THE_FOLDER)
    texts = {key: [write_value(of_run[key]) if key in of_run else MISSING for of_run in leaves] for key in keys}
    return {key: values for key, values in texts.items() if len(set(values)) > 1}
