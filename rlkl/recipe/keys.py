"""Every key of the recipe, read off the schema: what it expects, its default, its description."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from rlkl.recipe import Recipe
from rlkl.schema import Section

REQUIRED = "required"
ANYTHING = "any value"
"""Expected of a key that the schema does not list, in a section that allows such keys."""
_PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key. ``rewards[].weight`` is that key of any entry of ``rewards``."""

    name: str
    expects: str
    """The allowed values in words: ``a number > 0 or null``."""
    default: str
    """The default in YAML, or `REQUIRED`. If rules differ in it, each value is followed by its rules in brackets."""
    description: str
    rules: tuple[str, ...] = ()
    """For a key of ``update``: the rules that have it."""


def describe_keys(section: type[Section] = Recipe, prefix: str = "") -> list[Key]:
    """List all keys in the order of the schema. A key that several update rules share is listed once.

    ``prefix`` is the key of ``section`` in the recipe (``update.``).
    """
    found: dict[str, list[Key]] = {}
    for key in _walk(section, prefix, ()):
        found.setdefault(key.name, []).append(key)
    return [_merged(keys) for keys in found.values()]


def sections_in(annotation: Any) -> tuple[type[Section], ...]:
    """Return the sections that an annotation can hold, also within ``Annotated``, ``X | None``, unions and lists."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return (annotation,)
    return tuple(section for argument in get_args(annotation) for section in sections_in(argument))


def _walk(section: type[Section], prefix: str, rules: tuple[str, ...]) -> Iterator[Key]:
    for name, field in section.model_fields.items():
        children = sections_in(field.annotation)
        if not children:
            yield Key(
                name=prefix + name,
                expects=_expects(field),
                default=_default(field),
                description=field.description or "",
                rules=rules,
            )
        for child in children:
            separator = {list: "[].", dict: ".<name>."}.get(get_origin(field.annotation), ".")
            yield from _walk(child, prefix + name + separator, rules_of(child) or rules)
    if section.model_config.get("extra") == "allow":
        described = getattr(section, "further_keys", "")
        yield Key(name=f"{prefix}<name>", expects=ANYTHING, default="left out", description=described, rules=rules)


def rules_of(section: type[Section]) -> tuple[str, ...]:
    """Return the rule names of a section of update settings; empty for any other section."""
    if "rule" not in section.model_fields:
        return ()
    return get_args(section.model_fields["rule"].annotation)


def _merged(keys: Sequence[Key]) -> Key:
    """Return one key for those of several rules or terms that share a name."""
    rules = tuple(rule for key in keys for rule in key.rules)
    by_default: dict[str, list[str]] = {}
    for key in keys:
        by_default.setdefault(key.default, []).extend(key.rules)
    default = " or ".join(by_default)
    if len(by_default) > 1 and rules and set(by_default) != set(rules):
        default = ", ".join(f"{value} ({', '.join(names)})" for value, names in by_default.items())
    expects = dict.fromkeys(option for key in keys for option in key.expects.split(" or "))
    return replace(keys[0], expects=" or ".join(expects), default=default, rules=rules)


def _expects(field: FieldInfo) -> str:
    annotation = field.annotation
    options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return " or ".join(_option(option, field) for option in options)


def _option(option: Any, field: FieldInfo) -> str:
    if get_origin(option) is Literal:
        choices = ", ".join(str(choice) for choice in get_args(option))
        return choices if len(get_args(option)) == 1 else f"one of {choices}"
    if get_origin(option) is dict:
        return "a section of any keys"
    if get_origin(option) is list:
        entry = get_args(option)[0]
        return f"a list, each entry {_PLAIN.get(entry) or _option(entry, field)}"
    plain = _PLAIN.get(option) or _annotation(option)  # a rule of one's own may have any annotation
    return plain + (_bounds(field) if option is not NoneType else "")


def _annotation(option: Any) -> str:
    return option.__name__ if isinstance(option, type) and get_origin(option) is None else str(option)


def _bounds(field: FieldInfo) -> str:
    words = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "pattern": "matching"}
    found = [
        f"{sign} {limit}"
        for constraint in field.metadata
        for attribute, sign in words.items()
        if (limit := getattr(constraint, attribute, None)) is not None
    ]
    return " " + " and ".join(found) if found else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return REQUIRED
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
