"""docs/cluster.md: every stage of its recipe fits its GPUs, its output is the command's, and its keys exist."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest
import yaml

from rlkl.recipe import Recipe
from tests.unit.docs.scripts import ROOT, load_script

blocks = load_script("docs/plan_blocks.py")
PAGE: str = blocks.PAGE.read_text()
STAGES: list[tuple[dict[str, Any], list[str]]] = list(blocks.stages(PAGE))
COMMANDS = [(recipe, command) for recipe, commands in STAGES for command in commands]


def test_there_are_three_stages_after_the_laptop():
    assert [re.findall(r"--gpus (\d+)", commands[0]) for _, commands in STAGES] == [["1"], ["8"], ["16"]]


@pytest.mark.parametrize(("recipe", "command"), COMMANDS, ids=[command for _, command in COMMANDS])
def test_each_stage_fits(recipe: dict[str, Any], command: str):
    code, printed = blocks.plan(recipe, command)
    assert code == 0
    assert "DOES NOT FIT" not in printed
    assert "Warnings: none" in printed


def test_the_output_on_the_page_is_the_commands():
    """After a change of the plan: python docs/plan_blocks.py."""
    assert blocks.render(PAGE) == PAGE
    assert "16 x H100" in PAGE


def values_of(key: str) -> dict[str, Any]:
    """The schema of a key such as ``rollout.schedule``."""
    section, name = key.split(".")
    schema = Recipe.model_json_schema()
    definition = schema["$defs"][schema["properties"][section].get("$ref", "").rpartition("/")[2]]
    return definition["properties"][name]


def test_the_keys_and_values_of_its_tables_exist():
    table = PAGE[PAGE.index("| key | value | effect |") :].split("\n\n")[0]
    key, found = "", 0
    for line in table.splitlines()[2:]:
        named, value, _ = (re.sub("`", "", cell).strip() for cell in line.strip("|").split(" | "))
        key = named or key
        assert value in values_of(key)["enum"], (key, value)
        found += 1
    assert found == 10
    for default in ("alternate", "auto", "separate"):
        assert re.search(rf"\| `{default}` \| the default: ", table), default


def test_each_line_in_its_text_is_accepted():
    base = STAGES[-1][0]
    lines: list[str] = re.findall(r"`((?:rollout|learner)\.\w+: \w+)`", PAGE)
    assert len(lines) >= 3
    for line in lines:
        name, value = line.split(": ")
        section, key = name.split(".")
        changed = base | {section: {**base[section], key: yaml.safe_load(value)}}
        if (key, value) == ("placement", "colocated"):
            changed["rollout"] |= {"schedule": "alternate"}
        Recipe.model_validate(changed)


def test_the_scripts_that_it_names_exist():
    for script in re.findall(r"launch/[\w.]+", PAGE):
        assert (ROOT / script).exists(), script
    assert os.access(ROOT / "launch" / "submit.sh", os.X_OK)
