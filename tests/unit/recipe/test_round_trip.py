"""A recipe that was written down, in a file or as overrides, reads back the same: every key, every odd value."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from reward_models.training.recipe import RewardModelRecipe, SftRecipe
from rlkl.errors import RecipeError
from rlkl.recipe import Recipe
from rlkl.recipe.core_yaml import parse_yaml, write_value, write_yaml
from rlkl.recipe.io import as_override, dump_recipe, load_recipe, load_section
from rlkl.recipe.keys import ANYTHING, Key, describe_keys
from rlkl.updates import RULES

NUMBER_LIKE = (
    "1e-6",
    "12e4",
    "1E5",
    ".5",
    "+.5",
    "1.",
    "7",
    "-0",
    "017",
    "0x1f",
    "0o17",
    "0b1",
    "1_000",
    ".inf",
    ".nan",
)
WORD_LIKE = ("on", "off", "yes", "No", "y", "true", "False", "~", "null", "NULL", "")
DATE_LIKE = ("12:30:45", "190:20:30.5", "2026-01-02", "2026-01-02 10:00:00", "2026-01-02T10:00:00Z")
SYNTAX = (
    "<<",
    "=",
    "-",
    ".",
    "---",
    "...",
    "?",
    "? a",
    "!x",
    "&a",
    "*a",
    "@",
    "`",
    "%T",
    "|",
    ">",
    "a: b",
    "a #b",
    "{",
    "[b",
)
SPACES = (" a", "a ", "\t", "\n", "a\nb\n", "\r\n", "  \n\n x\n", "'", '"', "\\", "ab " * 90, "a" * 300, ", ", "#")
UNICODE = ("\x85", "a\x85b", "\u2028", "\ufeff", "\x07", "\x00", "\x7f", "\ud800", "\U0001f600", "äß", "\U0010ffff")
TEXTS = (*NUMBER_LIKE, *WORD_LIKE, *DATE_LIKE, *SYNTAX, *SPACES, *UNICODE)
NUMBERS = (1e-6, 12e4, 0.5, 1e22, 5e-324, 3.0, 0.1, 1e-300)
WHOLE = (1, 0, -1, 7, 1_000, 10**12)

MINIMAL: dict[type, dict[str, Any]] = {
    Recipe: {"model": {"path": "m"}, "data": {"source": "d"}, "rewards": [{"function": "f.py:f"}]},
    RewardModelRecipe: {"model": {"path": "m"}, "data": {"source": "d"}},
    SftRecipe: {"model": {"path": "m"}, "data": {"source": "d"}},
}
COMPANIONS: dict[str, dict[str, Any]] = {
    "data.chosen_column": {
        "data": {"rejected_column": "b"},
        "rollout": {"workers": 0},
        "update": {"rule": "sparsepo"},
    },
    "data.curriculum.discount": {"data": {"sampler": "bandit", "curriculum": {"bucket_column": "c"}}},
    "rewards[].error_value": {"rewards": [{"function": "f.py:f", "on_error": "constant", "error_value": 0.0}]},
    "rewards[].memory_mb": {"rewards": [{"function": "f.py:f", "mode": "process", "timeout_s": 5.0}]},
    "rewards[].cpus": {"rewards": [{"function": "f.py:f", "mode": "actor", "timeout_s": 5.0}]},
    "eval.every": {"eval": {"data": {"source": "h"}, "rewards": [{"function": "f.py:f"}]}},
    "update.max_log_ratio": {
        "models": {"teacher": {"path": "m"}},
        "update": {"rule": "distill", "placement": "reward"},
    },
    "update.answer_column": {
        "models": {"teacher": {"path": "m"}},
        "update": {"rule": "distill", "answer_column": "a", "on_policy_fraction": 0.5},
    },
    "update.terms[].top_k": {"update": {"terms": [{"term": "kl"}]}},
    "update.terms[].token_ids": {"update": {"terms": [{"term": "masked_kl", "token_ids": [1]}]}},
    "update.terms[].prior": {"update": {"terms": [{"term": "marginal_kl", "token_ids": [1, 2]}]}},
    "update.terms[].noise_std": {"update": {"terms": [{"term": "consistency"}]}},
    "update.terms[].break_ids": {"update": {"terms": [{"term": "span"}]}},
    "update.gate_temperature": {
        "models": {"teacher": {"path": "m"}},
        "update": {"rule": "distill", "kept_mass": 0.9, "gate_tokens": 4},
    },
    "update.terms[].states": {"update": {"terms": [{"term": "replay", "states": "s"}]}},
    "update.terms[].column": {"update": {"terms": [{"term": "rewording", "column": "c"}]}},
    "update.terms[].coef": {"update": {"terms": [{"term": "entropy"}]}},
}
"""Settings without which some keys mean nothing, by one key that needs them."""


def values_for(key: Key) -> tuple[Any, ...]:
    """Values of the kinds that ``key`` takes, some of them out of its bounds."""
    if key.name == "update.terms[].to":
        return ("reference", "average")
    if key.name == "update.teacher":
        return ("teacher",)
    if key.name == "update.terms[].prior":
        return ([1.0, 3.0], [0.5, 0.25], None)
    if key.expects.startswith("a section of any keys"):
        return tuple({text: [text, {"k": text}], "number": NUMBERS[n % len(NUMBERS)]} for n, text in enumerate(TEXTS))
    if key.expects == ANYTHING:
        return (*TEXTS, *NUMBERS, *WHOLE, None, {"k": list(TEXTS)})
    values: list[Any] = [None] if "null" in key.expects else []
    for part in key.expects.split(" or "):
        if part.startswith("text"):
            values += TEXTS
        elif "number" in part and not part.startswith("a list"):
            values += WHOLE if "whole" in part else (*NUMBERS, *WHOLE)
        elif part in ("true", "false"):
            values += [True, False]
        elif part.startswith("a list") and "one of" in part:
            choices = part.partition("one of ")[2].split(", ")
            values += [choices, choices[:1]]
        elif part.startswith("a list"):
            values += [[number, 3] for number in WHOLE] if "whole" in part else [[text, "b"] for text in TEXTS]
        else:
            values += part.removeprefix("one of ").split(", ")
    return tuple(values)


def merged(values: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    result = deepcopy(values)
    for name, value in more.items():
        result[name] = merged(result[name], value) if isinstance(result.get(name), dict) else deepcopy(value)
    return result


def with_value(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with ``key`` set; ``rewards[].x`` is set in the first entry."""
    result = deepcopy(values)
    *sections, leaf = key.split(".")
    place: Any = result
    for name in sections:
        place = place[name[:-2]][0] if name.endswith("[]") else place.setdefault(name, {})
    place[leaf] = value
    return result


def is_valid(section: type, values: dict[str, Any]) -> bool:
    try:
        section.model_validate(values)
    except ValidationError:
        return False
    return True


def filled(section: type, keys: list[Key], start: dict[str, Any], pick: random.Random) -> dict[str, Any]:
    """Key by key, a value that the section still accepts with all those before it."""
    values = start
    chosen: dict[str, Any] = {}
    keys = [key for key in keys if not key.name.startswith("update.terms") or "terms" in values.get("update", {})]
    keys = [key for key in keys if not key.name.startswith("eval.") or "eval" in values]
    for key in pick.sample(keys, len(keys)):
        options = values_for(key)
        for value in pick.sample(options, len(options)):
            if is_valid(section, trial := with_value(values, key.name, value)):
                values, chosen[key.name] = trial, value
                break
    return chosen


def starts(section: type) -> list[dict[str, Any]]:
    if section is not Recipe:
        return [MINIMAL[section]]
    teacher = {"models": {"teacher": {"path": "m"}}}
    more_of = {rule: teacher if rule == "distill" else {} for rule in RULES}
    of_rules = [merged(MINIMAL[section], {"update": {"rule": rule}} | more_of[rule]) for rule in RULES]
    return of_rules + [merged(MINIMAL[section], more) for more in COMPANIONS.values()]


@pytest.mark.parametrize("section", MINIMAL)
def test_every_key_reads_back_from_a_file_and_from_overrides(section: type, tmp_path: Path):
    pick = random.Random(section.__name__)
    keys = [replace(key, name=key.name.replace("<name>", "teacher")) for key in describe_keys(section)]
    keys = [key for key in keys if "eval.rewards[]" not in key.name or key.name.endswith(".function")]
    minimal, dumped = tmp_path / "minimal.yaml", tmp_path / "recipe.yaml"
    tried: dict[str, list[Any]] = defaultdict(list)
    begins = starts(section)
    for turn in range(max(8, 3 * len(begins))):  # a key of one rule has three turns, of which some leave it no value
        start = begins[turn % len(begins)]
        minimal.write_text(write_yaml(start))
        chosen = filled(section, keys, start, pick)
        values = start
        for name, value in chosen.items():
            values = with_value(values, name, value)
            tried[name].append(value)
        recipe = section.model_validate(values)

        dumped.write_text(dump_recipe(recipe), encoding="utf-8")
        assert read(section, dumped) == recipe
        overrides = [as_override(name.replace("[]", "[0]"), value) for name, value in chosen.items()]
        assert not any("\n" in override for override in overrides)
        assert read(section, minimal, *overrides) == recipe
    assert {key.name for key in keys} - tried.keys() == set()


@pytest.mark.parametrize("text", TEXTS)
def test_an_engine_argument_of_any_name_reads_back(text: str, tmp_path: Path):
    values = with_value(MINIMAL[Recipe], "rollout.vllm", {text: [text, {"k": text}]})
    if not is_valid(Recipe, values):
        assert text == "\ud800", "only what is no text may be refused"
        return
    recipe = Recipe.model_validate(values)
    assert recipe.rollout.vllm.arguments == {text: [text, {"k": text}]}
    (tmp_path / "dumped.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "dumped.yaml") == recipe
    (tmp_path / "minimal.yaml").write_text(write_yaml(MINIMAL[Recipe]))
    assert load_recipe(tmp_path / "minimal.yaml", as_override("rollout.vllm", {text: [text, {"k": text}]})) == recipe


def read(section: type, file: Path, *overrides: str) -> Any:
    return load_recipe(file, *overrides) if section is Recipe else load_section(section, file, *overrides)


@pytest.mark.parametrize("text", TEXTS)
def test_text_stays_text_in_every_place(text: str):
    for value in (text, [text], {text: text}, {"a": [{text: [text, 1]}]}):
        assert parse_yaml(write_yaml({"key": value}), "test") == {"key": value}
        assert parse_yaml(write_value(value), "test") == value


@pytest.mark.parametrize("text", [*NUMBER_LIKE, *WORD_LIKE, *DATE_LIKE, "<<", "="])
def test_other_yaml_readers_take_text_for_text_too(text: str):
    assert yaml.safe_load(write_yaml({"key": text})) == {"key": text}


@pytest.mark.parametrize("number", [*NUMBERS, *WHOLE, -3, 10**30, -0.0, math.inf, True, None])
def test_numbers_keep_value_and_type(number: float):
    assert repr(parse_yaml(write_value(number), "test")) == repr(number)


def test_random_text_reads_back():
    pick = random.Random(0)
    for _ in range(500):
        letters = [pick.choice(TEXTS)[:3] if pick.random() < 0.5 else chr(pick.randrange(0x3000)) for _ in range(6)]
        text = "".join(letters[: pick.randrange(7)])
        assert parse_yaml(write_yaml({"key": text, text: [text]}), "test") == {"key": text, text: [text]}
        assert parse_yaml(write_value(text), "test") == text


def test_values_that_no_file_can_hold_are_refused_with_their_key():
    recipe = Recipe.model_validate(
        {**MINIMAL[Recipe], "rewards": [{"function": "f.py:f", "settings": {"folders": [Path("a")]}}]}
    )
    with pytest.raises(RecipeError, match=r"rewards\[0\]\.settings\.folders\[0\] = .*Path.*got PosixPath"):
        dump_recipe(recipe)
