"""Turn pydantic's errors into sentences: the key, the value, what was expected, and the nearest key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rlkl.recipe import Recipe
from rlkl.recipe.keys import Key, describe_keys, rules_of, sections_in
from rlkl.schema import Section
from rlkl.updates.custom_classes import WrongSettings

_LONGEST_VALUE = 80


@dataclass(frozen=True, slots=True)
class _Root:
    """The section that was checked, and its key in the recipe."""

    section: type[Section]
    at: str


@dataclass(frozen=True, slots=True)
class _Place:
    """The place of an error: the dotted key as written, its name in the schema, and the sections around it."""

    written: str
    schema_name: str
    sections: tuple[type[Section], ...]


def explain(error: ValidationError, source: str, root: _Root | None = None) -> str:
    """List all problems, one a line. ``source`` names the file; ``root`` is the section that was checked."""
    problems = list(dict.fromkeys(_problems(error, root or _Root(Recipe, ""))))
    if len(problems) == 1:
        return f"{source}: {problems[0]}"
    return "\n".join([f"{source}: {len(problems)} problems", *(f"  {problem}" for problem in problems)])


def explain_outside(error: ValidationError, source: str, section: type[Section]) -> str:
    """List all problems in the settings of a custom rule."""
    return explain(error, source, _Root(section, "update"))


def explain_whole(error: ValidationError, source: str, section: type[Section]) -> str:
    """List all problems in a recipe of another class than `Recipe`."""
    return explain(error, source, _Root(section, ""))


def _problems(error: ValidationError, root: _Root) -> Iterator[str]:
    keys = {key.name: key for key in describe_keys(root.section, f"{root.at}.".lstrip("."))}
    for detail in error.errors():
        reason = detail.get("ctx", {}).get("error")
        if isinstance(reason, WrongSettings):
            yield from _problems(reason.error, _Root(reason.section, _locate(detail["loc"], root).written))
        else:
            yield _problem(detail, keys, root)


def _problem(detail: ErrorDetails, keys: dict[str, Key], root: _Root) -> str:
    kind = detail["type"]
    place = _locate(detail["loc"], root)
    if kind == "extra_forbidden":
        return f"{place.written}: unknown key. {_suggestion(place, keys)}"
    if kind == "missing":
        if place.schema_name in keys:
            return f"{place.written} is missing: {keys[place.schema_name].description}"
        return f"{place.written} is missing: a section with the keys {', '.join(_fields(place.sections))}"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        return _wrong_tag(detail, place)
    if kind == "invalid_key":
        return f"the key {detail['input']!r} is no text; expected names as keys, such as steps or model"
    got = f"{place.written} = {_shortened(detail['input'])}"
    if kind == "value_error":
        reason = str(detail["ctx"]["error"]) if "ctx" in detail else detail["msg"]
        if place.sections:  # a check of a whole section; the reason names its keys
            named = reason.replace(f"{place.schema_name}[]", place.written)
            return named if named != reason else f"{place.written}: {reason}".removeprefix(": ")
        return f"{got}: {reason}"
    if place.schema_name in keys:
        return f"{got}: expected {keys[place.schema_name].expects}{_quoting_hint(detail, keys[place.schema_name])}"
    if kind in ("model_type", "model_attributes_type"):
        return f"{got}: expected a section with the keys {', '.join(_fields(place.sections))}"
    if kind == "dict_type" or (kind == "too_short" and detail["input"] == {}):
        inner = f", each a section with the keys {', '.join(_fields(place.sections))}" if place.sections else ""
        return f"{got}: expected one entry or more, NAME: VALUE{inner}"
    if kind == "list_type":
        return f"{got}: expected a list, each entry a section with the keys {', '.join(_fields(place.sections))}"
    return f"{got}: {detail['msg'].lower()}"


def _wrong_tag(detail: ErrorDetails, place: _Place) -> str:
    """Explain a rule or a term that is missing or unknown."""
    context = detail.get("ctx", {})
    tag = str(context["discriminator"]).strip("'")
    found = [name for section in place.sections for name in get_args(section.model_fields[tag].annotation)]
    known = re.findall(r"'(\w+)'", context.get("expected_tags", "")) or list(dict.fromkeys(found))
    expected = f"{', '.join(known)}, or FILE.py:Class or package.module:Class for a {tag} of your own"
    if detail["type"] == "union_tag_not_found":
        return f"{place.written}.{tag} is missing: expected {expected}"
    value = detail["input"][tag]
    near = get_close_matches(str(value), known, n=1)
    return f"{place.written}.{tag} = {value!r}: expected {expected}" + (f". {_did_you_mean(near)}" if near else "")


def _locate(loc: tuple[int | str, ...], root: _Root) -> _Place:
    """Follow pydantic's location through the schema, leaving out the names it inserts for members of a union."""
    sections: tuple[type[Section], ...] = (root.section,)
    written = schema_name = root.at
    names_section = False  # the next part is a name of the user's, not a key of the schema
    for position, part in enumerate(loc):
        if names_section:
            written, schema_name, names_section = f"{written}.{part}", f"{schema_name}.<name>", False
            continue
        if isinstance(part, int):
            written, schema_name = f"{written}[{part}]", f"{schema_name}[]"
            continue
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        is_tag = any(part in (*rules_of(section), *_terms_of(section)) for section in sections)
        is_union_member = not fields and (position < len(loc) - 1 or not sections or is_tag)
        if is_union_member:
            continue
        written, schema_name = f"{written}.{part}".lstrip("."), f"{schema_name}.{part}".lstrip(".")
        if fields:
            sections = tuple(child for field in fields for child in sections_in(field.annotation))
            names_section = any(get_origin(field.annotation) is dict for field in fields) and bool(sections)
    return _Place(written, schema_name.removesuffix("[]"), sections)


def _terms_of(section: type[Section]) -> tuple[str, ...]:
    """Return the names of the built-in terms that a section holds the settings of; empty for any other section."""
    return get_args(section.model_fields["term"].annotation) if "term" in section.model_fields else ()


def _suggestion(place: _Place, keys: dict[str, Key]) -> str:
    if place.schema_name in keys:
        return f"Only these update rules have it: {', '.join(keys[place.schema_name].rules)}"
    section, _, leaf = place.written.rpartition(".")
    siblings = _fields(place.sections)
    if near := get_close_matches(leaf, siblings, cutoff=0.75):
        return _did_you_mean([f"{section}.{name}".lstrip(".") for name in near])
    if elsewhere := [name for name in keys if name.rpartition(".")[2] == leaf]:
        return _did_you_mean(elsewhere)
    leaves = {name.rpartition(".")[2]: name for name in keys}
    if near := get_close_matches(leaf, leaves, cutoff=0.75):
        return _did_you_mean([leaves[name] for name in near])
    if near := get_close_matches(leaf, siblings, cutoff=0.5):
        return _did_you_mean([f"{section}.{name}".lstrip(".") for name in near])
    return f"The keys of {section or 'a recipe'} are {', '.join(siblings)}"


def _did_you_mean(names: list[str]) -> str:
    return f"Did you mean {' or '.join(names)}?"


def _quoting_hint(detail: ErrorDetails, key: Key) -> str:
    if detail["type"] == "string_type" and isinstance(detail["input"], int | float) and "text" in key.expects:
        example = f': "{detail["input"]}"' if type(detail["input"]) is int else ""  # others may be written otherwise
        return f"; put it in quotes{example}"
    return ""


def _fields(sections: tuple[type[Section], ...]) -> list[str]:
    return list(dict.fromkeys(name for section in sections for name in section.model_fields))


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."
