"""All cases, by area. docs/bad_input_table.py writes them into docs/bad_input.md."""

from __future__ import annotations

from tests.unit.badinput import checkpoints, command_lines, data, environment, models, recipes, rewards
from tests.unit.badinput.case import Case

AREAS: dict[str, list[Case]] = {
    "Recipes": recipes.CASES,
    "Data files": data.CASES,
    "Pictures": data.PICTURES,
    "Rewards": rewards.CASES,
    "Models": models.CASES,
    "Run folders and checkpoints": checkpoints.CASES,
    "Command lines": command_lines.CASES,
    "Machine, disk and cluster": environment.CASES,
}
