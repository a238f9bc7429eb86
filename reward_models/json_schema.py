"""JSON that has to fit a schema."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from reward_models.extraction import fenced
from reward_models.settings import (
    check_choice,
    check_column,
    check_number,
    fingerprint_of_files,
    refuse,
    shorten,
    takes,
    text_of,
)
from rlkl.errors import RewardError, RewardInputError

if TYPE_CHECKING:
    from jsonschema.protocols import Validator


@dataclass(kw_only=True, eq=False)
class JsonSchema:
    """1 where the completion is JSON that fits the schema; ``parsed`` where it is JSON that does not; else 0.

    JSON as RFC 8259 has it: no NaN or Infinity, and no key twice in an object. ``format`` is not checked; a ``$ref``
    resolves within the schema, never over the network.
    """

    schema: dict[str, Any] | bool | str | None = None
    """The schema itself, or the path of a JSON file that holds it."""
    schema_column: str | None = None
    """Instead: a column that holds each row's own schema, as an object or as JSON text."""
    extract: str = "whole"
    """``whole`` (the completion and nothing else) or ``fenced`` (the last block between ``` fences)."""
    parsed: float = 0.0
    """The value of JSON that does not fit the schema, in [0, 1]."""
    _validator: Validator | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check_choice(self, "extract", ("whole", "fenced"))
        check_number(self, "parsed", low=0, high=1)
        if (self.schema is None) == (self.schema_column is None):
            raise RewardInputError(
                "JsonSchema: set one of 'schema' (a schema or the path of a file) and 'schema_column' (a schema a row)"
            )
        if self.schema_column is not None:
            check_column(self, "schema_column")
        elif not isinstance(self.schema, dict | bool | str):
            raise refuse(self, "schema", "a JSON schema or the path of a JSON file")
        self.__signature__ = takes("completion", *([self.schema_column] if self.schema_column else []))

    def fingerprint(self) -> str:
        """Hash the schema's file, if it has one."""
        return fingerprint_of_files(Path(self.schema)) if isinstance(self.schema, str) else ""

    def setup(self) -> None:
        """Read and check the schema.

        Raises:
            RewardInputError: the file is missing or no JSON, or the schema is none.
        """
        if self.schema_column is not None or self._validator is not None:
            return
        try:
            schema = json.loads(Path(self.schema).read_text()) if isinstance(self.schema, str) else self.schema
            self._validator = _validator(schema)
        except (OSError, ValueError) as error:
            raise refuse(self, "schema", f"a JSON schema or the path of a JSON file ({error})") from error

    def __call__(self, **arguments: Any) -> float:
        from referencing.exceptions import Unresolvable

        validator = self._validator_for(arguments)
        text = text_of(self, "completion", arguments["completion"])
        candidate = text if self.extract == "whole" else fenced(text, ("json", "json5", "jsonc"))
        try:
            value = _strict_json(candidate or "")
        except (ValueError, RecursionError):
            return 0.0
        try:
            return 1.0 if validator.is_valid(value) else float(self.parsed)
        except RecursionError:  # nested deeper than the schema can be followed
            return float(self.parsed)
        except Unresolvable as error:
            raise RewardError(f"JsonSchema: the schema has a '$ref' to something outside it: {error}") from error

    def _validator_for(self, arguments: dict[str, Any]) -> Validator:
        if self.schema_column is None:
            self.setup()
            assert self._validator is not None
            return self._validator
        schema = arguments[self.schema_column]
        try:
            return _validator(json.loads(schema) if isinstance(schema, str) else schema)
        except ValueError as error:
            raise RewardError(
                f"JsonSchema: column '{self.schema_column}' of this row is {shorten(repr(schema))}; expected a JSON "
                f"schema ({error})"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_validator": None}


def _validator(schema: Any) -> Validator:
    """Build the validator of a schema; raises `ValueError` if ``schema`` is none."""
    from jsonschema import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for
    from referencing import Registry

    if not isinstance(schema, dict | bool):
        raise ValueError(f"a {type(schema).__name__}, not an object")
    kind: Any = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"at {error.json_path}: {error.message}") from error
    return kind(schema, registry=Registry())


def _strict_json(text: str) -> Any:
    return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_key_twice)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key comes twice")
    return found
