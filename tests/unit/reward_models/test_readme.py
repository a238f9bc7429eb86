"""The README's table and recipes are true."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import reward_models
from rlkl.recipe import RewardSection
from rlkl.rewards import load_rewards
from rlkl.types import Completion, Prompt
from tests.unit.reward_models.judge_server import Reply, endpoint
from tests.unit.reward_models.test_classifier import TEMPLATE, qwen3, save

README = Path(reward_models.__file__).with_name("README.md").read_text()
RECIPES = [yaml.safe_load(block)["rewards"] for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)]
LONGEST_DEFAULT = 20

ROWS: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "math": ({"answer": "1/2"}, {r"so \boxed{0.5}": 1, "0.5": 0, r"\boxed{9^{9^{9^9}}}": 0}),
    "label": ({"label": "Spam"}, {"I think it is\nspam": 1, "spam, I think": 0}),
    "number": ({"answer": 3}, {"3.005": 1, "3.02": 0}),
    "form": ({}, {r"a</think> \boxed{1}": 1, r"\boxed{1}": 0}),
    "overlong": ({}, {"x" * 3072: 0, "x" * 3584: -0.5, "x" * 9000: -1}),
    "no_disclaimer": ({}, {"As an AI I must": -1, "aside": 0}),
    "json": ({}, {'```json\n{"name": "Ada"}\n```': 1, "```json\n{}\n```": 0.1, '{"name": "Ada"}': 0}),
    "code": ({"tests": '[{"stdin": "2", "stdout": "4"}]'}, {"```python\nprint(int(input()) * 2)\n```": 1, "4": 0}),
    "reasoning": (
        {"entry": '{"question": "1+1", "answer": "2", "metadata": {"source_dataset": "gcd"}}'},
        {"so <answer>2</answer>": 1, "2": 0, "<answer>3</answer>": 0},
    ),
    "sentiment": ({}, {"a good good film": 0.25}),
    "judge": ({"question": "1+1?"}, {"2": 1}),
}
"""A recipe's name -> columns, and completions with their scores. Those with models of their own are tested below."""


def table_row(name: str) -> list[str]:
    (row,) = [line for line in README.splitlines() if line.startswith(f"| `{name}` |")]
    return [cell.strip() for cell in row.strip("|").split(" | ")]


def default_of(field: dataclasses.Field[Any]) -> str | None:
    """As the table writes it; None for a setting that has to be given."""
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return None
    if value is None:
        return "none"
    if isinstance(value, str):
        return '""' if not value else "..." if len(value) > LONGEST_DEFAULT else value
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


@pytest.mark.parametrize("name", reward_models.__all__)
def test_the_table_has_each_reward_with_its_settings(name):
    fields = [field for field in dataclasses.fields(getattr(reward_models, name)) if field.init]
    defaults = {field.name: default_of(field) for field in fields}
    written = " ".join(f"`{key}`" if value is None else f"`{key}={value}`" for key, value in defaults.items())
    assert table_row(name)[2] == written


def test_there_is_a_recipe_for_each_reward():
    functions = {entry["function"] for recipe in RECIPES for entry in recipe}
    assert functions == {f"reward_models:{name}" for name in reward_models.__all__}


@pytest.mark.parametrize("name", ROWS)
def test_recipes_score_as_they_say(name):
    columns, completions = ROWS[name]
    (entry,) = [entry for recipe in RECIPES for entry in recipe if entry["name"] == name]
    if name == "judge":
        with endpoint(lambda number, body: Reply(text="[[1]]")) as server:
            settings = {**entry["settings"], "base_url": server.url, "check": False}
            scores = scores_of({**entry, "settings": settings}, columns, list(completions))
    else:
        scores = scores_of(entry, columns, list(completions))
    assert scores == pytest.approx(list(completions.values()))


def test_recipes_with_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("reward", "first", "second"):
        save(tmp_path / "models" / name, qwen3(1), template=TEMPLATE)
    entries = {entry["name"]: entry for recipe in RECIPES for entry in recipe}
    in_the_loop = {key: value for key, value in entries["reward_model"].items() if key not in ("mode", "workers")}
    score = scores_of(in_the_loop, {"question": "1+1="}, ["2"])[0]
    model = reward_models.SequenceClassifier(path="models/reward", text="completion")
    assert score == pytest.approx(model(completions=["<user>1+1=<assistant>2"])[0], abs=1e-5)

    one = reward_models.SequenceClassifier(path="models/first")(prompts=["prompt"], completions=["2"])[0]
    first, second = one, (one - 0.3) / 2
    expected = (first + second) / 2 - 0.5 * abs(first - second) / 2
    assert scores_of(entries["reward_models"], {}, ["2"])[0] == pytest.approx(expected, abs=1e-5)


def scores_of(entry: dict[str, Any], columns: dict[str, Any], texts: list[str]) -> list[float]:
    """What a run would see, before weights."""
    section = RewardSection.model_validate({**entry, "cache": False, "max_failed_fraction": 1.0})
    trained = RewardSection(function="tests.unit.reward_models.members:length", weight=0.0)  # no monitor comes alone
    rewards = load_rewards([section, trained])
    prompt = Prompt(id="row", text="prompt", token_ids=(5,), columns=columns)
    completions = [
        Completion(token_ids=(3,) * len(text), logprobs=(0.0,) * len(text), finish_reason="stop", text=text)
        for text in texts
    ]
    rewards.check([prompt])
    try:
        scored = rewards.score(prompt, completions, step=0, seed=0)
    finally:
        rewards.close()
    return [{**one.components, **one.monitors}.get(entry["name"], one.reward) for one in scored]
