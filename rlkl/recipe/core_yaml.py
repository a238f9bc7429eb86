"""YAML by the core schema of YAML 1.2: ``1e-4`` is a number, ``off`` is text, and a key given twice is an error.

Text is written so that readers of YAML 1.1 read it as text, too.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import yaml

from rlkl.errors import RecipeError

_LINE_BREAK = re.compile(r"[\n\r\x85\u2028\u2029]")
_Resolvers = dict[str, list[tuple[str, re.Pattern[str]]]]


def parse_yaml(text: str, source: str) -> Any:
    """Read one document; raise `RecipeError`, which names ``source``, if it is not valid YAML."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{source} is not valid YAML{where}: {error.problem}{_way_out(error.problem)}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a number that Python refuses to read
        raise RecipeError(f"{source} is not valid YAML: {error}") from None


def _way_out(problem: str | None) -> str:
    """Return what to do about frequent mistakes, for the end of a message."""
    if problem is not None and "'\\t'" in problem:
        return "; indent with spaces, YAML does not take tabs"
    if problem == "but found another document":
        return "; a recipe is one document, so remove the line '---'"
    return ""


def write_yaml(values: Mapping[str, Any]) -> str:
    """Write a document that `parse_yaml` reads back as ``values``; tuples come back as lists.

    Raises `RecipeError`, which names the key, for a value that is not null, a truth value, a number, text, a list or a
    mapping of such values.
    """
    _refuse_other_values(values)
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def write_value(value: Any) -> str:
    """Write a value on one line, as it is given after ``key=`` on the command line."""
    _refuse_other_values(value)
    style = {"default_flow_style": True, "allow_unicode": True, "width": float("inf")}
    return yaml.dump([value], Dumper=_Dumper, sort_keys=False, **style).strip()[1:-1]


def _refuse_other_values(values: Any) -> None:
    for place, value in _leaves(values, ""):
        if type(value) not in (type(None), bool, int, float, str):
            raise RecipeError(
                f"{place or 'the value'} = {value!r}: a recipe holds null, true and false, numbers, text, lists and "
                f"mappings, so that it can be written to a file; got {type(value).__name__}"
            )


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    if type(value) is dict:
        for key, inner in value.items():
            yield f"the key {key!r} of {place}", key
            yield from _leaves(inner, f"{place}.{key}".lstrip("."))
    elif type(value) in (list, tuple):
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{place}[{number}]")
    else:
        yield place, value


class _Loader(yaml.SafeLoader):
    """Reads the core schema and refuses repeated keys."""

    yaml_implicit_resolvers: _Resolvers = {}  # noqa: RUF012 - as PyYAML declares it

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    "a list or a mapping cannot be a key; write KEY: VALUE with a name as the key",
                    key.start_mark,
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes text that either schema, 1.1 or 1.2, would read as something else."""

    yaml_implicit_resolvers: _Resolvers = {  # noqa: RUF012 - as PyYAML declares it
        first: list(resolvers) for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Escape line breaks: PyYAML reads a bare U+0085 back as a newline."""
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if _LINE_BREAK.search(data) else None)


_Dumper.add_representer(str, _Dumper.represent_str)

for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^(?:[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    ("float", r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
    ("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", list("-+.")),
    ("merge", r"^<<$", ["<"]),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)
