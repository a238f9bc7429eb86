"""Read the parameters of a reward function, and fill them in by name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import Parameter
from typing import Any, Literal

from rlkl.errors import RewardInputError, did_you_mean

Unit = Literal["sample", "batch", "group"]
"""The subject of one call of a function."""

_NULLABLE = re.compile(r"\b(None|NoneType|Optional)\b|^(list\[|Sequence\[)?(typing\.)?(Any|object)\b")
"""Annotations that allow None."""
NOT_FOR_ALL = ("state", "rng")
"""Arguments that a ``**`` parameter does not get: a function that needs them names them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """A reward function's parameters, by name."""

    required: frozenset[str]
    optional: Mapping[str, Any]
    """Name -> default."""
    takes_all: bool
    """Whether it has a ``**`` parameter."""
    nullable: frozenset[str] = frozenset()
    """Parameters whose annotation allows None."""

    @property
    def names(self) -> frozenset[str]:
        return self.required | self.optional.keys()

    @property
    def unit(self) -> Unit:
        """``group`` makes a group function, a plural of prompt or completion a batch function."""
        if "group" in self.names:
            return "group"
        return "batch" if self.names & {"prompts", "completions"} else "sample"

    def without(self, names: Mapping[str, Any]) -> Parameters:
        """Return the parameters without those that are filled in already."""
        return Parameters(
            required=self.required - names.keys(),
            optional={name: default for name, default in self.optional.items() if name not in names},
            takes_all=self.takes_all,
            nullable=self.nullable - names.keys(),
        )


def parameters_of(function: Callable[..., Any]) -> Parameters:
    """Read the signature.

    Raises:
        RewardInputError: there is none (some C functions), it has a required positional-only parameter, or it has
            only ``*args``.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError as error:
        raise RewardInputError(f"{function!r} has no signature to read; wrap it in a Python function") from error
    by_name = [p for p in parameters if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)]
    for p in parameters:
        if p.kind is Parameter.POSITIONAL_ONLY and p.default is Parameter.empty:
            raise RewardInputError(
                f"parameter '{p.name}' of {_named(function)} is positional-only; arguments come by name: remove "
                "the '/' from its signature"
            )
    kinds = {p.kind for p in parameters}
    if Parameter.VAR_POSITIONAL in kinds and not by_name and Parameter.VAR_KEYWORD not in kinds:
        raise RewardInputError(f"{_named(function)} takes only *args; arguments come by name: name those that it needs")
    return Parameters(
        required=frozenset(p.name for p in by_name if p.default is Parameter.empty),
        optional={p.name: p.default for p in by_name if p.default is not Parameter.empty},
        takes_all=any(p.kind is Parameter.VAR_KEYWORD for p in parameters),
        nullable=frozenset(p.name for p in by_name if _allows_none(p.annotation)),
    )


def _allows_none(annotation: Any) -> bool:
    """Return whether an annotation allows None, also for an entry of a list. It is read as text and never evaluated."""
    if annotation is Parameter.empty:
        return False
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return _NULLABLE.search(text) is not None


def _named(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", None)
    return f"'{name}'" if name else repr(function)


def bind_arguments(parameters: Parameters, available: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments for one call, by name.

    Raises:
        RewardInputError: a required parameter has no value; the message lists those that there are.
    """
    for name in sorted(parameters.required - available.keys()):
        raise RewardInputError(f"its argument '{name}' is not available for this row; {did_you_mean(name, available)}")
    wanted = parameters.names
    if parameters.takes_all:
        wanted = wanted | (available.keys() - set(NOT_FOR_ALL))
    return {name: value for name, value in available.items() if name in wanted}
