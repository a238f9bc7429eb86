"""Several rewards for the same thing, made into one, with their disagreement beside it."""

from __future__ import annotations

import asyncio
import inspect
import math
import statistics
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from inspect import Parameter, Signature
from typing import Any

import rlkl
from reward_models.settings import check_choice, check_number, refuse, shorten
from rlkl.errors import RewardError, RewardInputError, did_you_mean
from rlkl.rewards.function.source import fingerprint_of, source_of
from rlkl.system.importing import Importer

_IMPORTER = Importer(
    key="settings.members[].function",
    noun="reward",
    forms="path/to/file.py:function or package.module:name",
    error=RewardInputError,
)
_PLURALS = {"prompt": "prompts", "completion": "completions"}
_NOT_PER_SAMPLE = ("state",)
"""Arguments that are equal for all samples of a batch."""
_DISAGREEMENT = "disagreement"


@dataclass(kw_only=True, eq=False)
class Ensemble:
    """One score out of several rewards, such as reward models that were trained apart.

    - ``mean``; ``min``, which no member can be fooled into raising alone; ``weighted``, the weighted mean;
    - ``penalized``: the mean less ``penalty`` times the standard deviation over the members (uncertainty-weighted
      optimisation, arXiv 2310.02743).

    Returns a `rlkl.Reward` whose components are each member's score by name and ``disagreement``, that standard
    deviation; components have curves and do not enter the score. A member that abstains is left out; where all do, so
    does the ensemble. A member that fails, or returns no finite number, fails it.

    Members share the same signature rules as rewards of their own. One batch function among them makes the ensemble a
    batch function; one async function makes its calls awaitable. ``group`` functions cannot be members.
    """

    members: Sequence[Any]
    """A mapping for each, with ``function`` (as in a recipe), and if need be ``settings``, ``name``, ``weight`` (for
    ``weighted``), ``shift`` and ``scale``: what is combined is ``(score - shift) / scale``. Callables too."""
    combine: str = "mean"
    penalty: float = 1.0
    """For ``penalized``."""
    _built: list[_Member] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        check_choice(self, "combine", ("mean", "min", "weighted", "penalized"))
        check_number(self, "penalty", low=0)
        if not isinstance(self.members, list | tuple) or len(self.members) < 2:
            raise refuse(self, "members", "a list of at least two rewards")
        self._build()

    def _build(self) -> None:
        self._built = [_Member(given, weighted=self.combine == "weighted") for given in self.members]
        for name, count in Counter([*(member.name for member in self._built), _DISAGREEMENT]).items():
            if count > 1:
                raise RewardInputError(f"Ensemble: '{name}' comes {count} times; give each member its own 'name'")
        self._is_batch = any(member.is_batch for member in self._built)
        parameters: dict[str, Parameter] = {}
        for member in self._built:
            for parameter in member.parameters:
                name = _PLURALS.get(parameter.name, parameter.name) if self._is_batch else parameter.name
                known = parameters.get(name)
                if known is None or known.default is not Parameter.empty:
                    parameters[name] = parameter.replace(name=name, kind=Parameter.KEYWORD_ONLY)
        self.__signature__ = Signature(list(parameters.values()))

    def fingerprint(self) -> str:
        """Join the members' fingerprints: each counts as it would by itself."""
        return " ".join(member.fingerprint() for member in self._built)

    def setup(self) -> None:
        for member in self._built:
            member.hook("setup")

    def close(self) -> None:
        for member in self._built:
            member.hook("close")

    def __call__(self, **arguments: Any) -> Any:
        if any(member.is_async for member in self._built):
            return self._gathered(arguments)
        answers = [self._answer(member, arguments) for member in self._built]
        return self._combined(answers)

    async def _gathered(self, arguments: Mapping[str, Any]) -> Any:
        answers = [self._answer(member, arguments) for member in self._built]
        return self._combined(await asyncio.gather(*map(_finished, answers)))

    def _answer(self, member: _Member, arguments: Mapping[str, Any]) -> Any:
        """Return a member's score, or a list of scores for a batch; await those that are coroutines."""
        if not self._is_batch or member.is_batch:
            return member.call(arguments)
        count = len(next(arguments[name] for name in ("completions", "prompts") if name in arguments))
        return [member.call(_of_sample(arguments, index)) for index in range(count)]

    def _combined(self, answers: Sequence[Any]) -> Any:
        if not self._is_batch:
            return self._one(answers)
        lengths = {member.name: len(list(answer)) for member, answer in zip(self._built, answers, strict=True)}
        if len(set(lengths.values())) > 1:
            raise RewardError(f"Ensemble: its members gave lists of different lengths: {lengths}")
        return [self._one(of_sample) for of_sample in zip(*answers, strict=True)]

    def _one(self, answers: Sequence[Any]) -> Any:
        scores = {
            member.name: member.scaled(answer)
            for member, answer in zip(self._built, answers, strict=True)
            if answer is not None
        }
        if not scores:
            return None
        values = list(scores.values())
        disagreement = statistics.pstdev(values)
        if self.combine == "min":
            value = min(values)
        elif self.combine == "weighted":
            weights = {member.name: member.weight for member in self._built if member.name in scores}
            value = sum(weights[name] * scores[name] for name in scores) / sum(weights.values())
        else:
            value = statistics.fmean(values) - (self.penalty * disagreement if self.combine == "penalized" else 0.0)
        return rlkl.Reward(value=value, components={**scores, _DISAGREEMENT: disagreement})

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_built": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._build()


class _Member:
    """One reward of an ensemble."""

    def __init__(self, given: Any, *, weighted: bool) -> None:
        keys = ("function", "settings", "name", "weight", "shift", "scale")
        if callable(given):
            given = {"function": given}
        if not isinstance(given, Mapping) or "function" not in given:
            raise RewardInputError(f"Ensemble: a member is {shorten(repr(given))}; expected a mapping with 'function'")
        for key in given:
            if key not in keys:
                raise RewardInputError(f"Ensemble: a member has the key '{key}'; {did_you_mean(str(key), keys)}")
        if "weight" in given and not weighted:
            raise RewardInputError("Ensemble: a member has a 'weight', which only 'combine: weighted' uses")
        reference, settings = given["function"], given.get("settings") or {}
        self._function = _built(reference, settings)
        self._source = source_of(reference, settings) if isinstance(reference, str) else None
        self.name: str = given.get("name") or _name_of(self._function)
        self.weight = self._number(given, "weight", 1.0, positive=True)
        self._shift = self._number(given, "shift", 0.0, positive=False)
        self._scale = self._number(given, "scale", 1.0, positive=True)
        self.parameters = self._read_parameters()
        names = {parameter.name for parameter in self.parameters}
        self.is_batch = bool(names & set(_PLURALS.values()))
        self.is_async = inspect.iscoroutinefunction(self._function) or inspect.iscoroutinefunction(
            type(self._function).__call__
        )

    def fingerprint(self) -> str:
        return fingerprint_of(self._source, self._function)

    def hook(self, name: str) -> None:
        """Call ``setup`` or ``close``, if there is one."""
        if (hook := getattr(self._function, name, None)) is not None:
            hook()

    def call(self, arguments: Mapping[str, Any]) -> Any:
        wanted = [parameter.name for parameter in self.parameters if parameter.name in arguments]
        return self._function(**{name: arguments[name] for name in wanted})

    def scaled(self, score: Any) -> float:
        try:
            number = math.nan if isinstance(score, str | bytes) else float(score)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise RewardError(f"Ensemble: member '{self.name}' gave {shorten(repr(score))}; expected a finite number")
        return (number - self._shift) / self._scale

    def _read_parameters(self) -> list[Parameter]:
        parameters = list(inspect.signature(self._function).parameters.values())
        filled = self._function.keywords if isinstance(self._function, partial) else {}
        for parameter in parameters:
            if parameter.kind not in (Parameter.KEYWORD_ONLY, Parameter.POSITIONAL_OR_KEYWORD):
                raise RewardInputError(f"Ensemble: member '{self.name}' has '{parameter}'; name every argument")
            if parameter.name == "group":
                raise RewardInputError(f"Ensemble: member '{self.name}' takes 'group', which members cannot")
        return [parameter for parameter in parameters if parameter.name not in filled]

    def _number(self, given: Mapping[str, Any], key: str, default: float, *, positive: bool) -> float:
        value = given.get(key, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or (positive and value <= 0):
            expected = "a number above 0" if positive else "a number"
            raise RewardInputError(f"Ensemble: member '{self.name}' has '{key}' = {value!r}; expected {expected}")
        return float(value)


def _built(function: Any, settings: Mapping[str, Any]) -> Callable[..., Any]:
    """Build a member: an instance of a class, or a function with its settings filled in."""
    found = _IMPORTER.callable_at(function) if isinstance(function, str) else function
    if not callable(found):
        raise RewardInputError(f"Ensemble: a member's 'function' is {found!r}; expected a reference or a callable")
    if isinstance(found, type):
        return found(**settings)
    return partial(found, **settings) if settings else found


def _name_of(function: Any) -> str:
    named = function.func if isinstance(function, partial) else function
    return getattr(named, "__name__", type(named).__name__)


def _of_sample(arguments: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Return one sample's arguments out of a batch's."""
    singular = {plural: single for single, plural in _PLURALS.items()}
    return {
        singular.get(name, name): value if name in _NOT_PER_SAMPLE else value[index]
        for name, value in arguments.items()
    }


async def _finished(answer: Any) -> Any:
    if isinstance(answer, list):
        return await asyncio.gather(*map(_finished, answer))
    return await answer if isinstance(answer, Awaitable) else answer
