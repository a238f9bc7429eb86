"""Score answers with the verifiers of reasoning-gym (arXiv 2505.24760), which also makes the questions."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from reward_models.evaluated_answers import is_code
from reward_models.extraction import EXTRACTORS
from reward_models.settings import check_choice, check_column, shorten, takes, text_of
from rlkl.errors import RewardError, RewardInputError

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)

_Verifier = Callable[..., float]


def tagged(text: str) -> str | None:
    """Return the text of the last ``<answer>...</answer>``; None if there is none."""
    found = _TAGGED.findall(text)
    return found[-1].strip() if found else None


_EXTRACTORS = {"tagged": tagged, **EXTRACTORS}


@dataclass(kw_only=True, eq=False)
class ReasoningGym:
    """Return the score, 0 to 1, that a task of reasoning-gym gives to the completion's answer; 0 without an answer.

    A row holds the task's entry as JSON text (``recipes/reasoning_gym_data.py`` writes such rows). An answer that the
    verifier cannot read scores 0, and so does one that the verifier would run as code (`evaluated_answers`). Needs the
    package: ``pip install 'rlkl[reasoning-gym]'``.
    """

    entry_column: str = "entry"
    extract: str = "tagged"
    """The completion's answer: ``tagged``, ``whole``, ``last_line``, ``last_number`` or ``boxed``."""
    _verifiers: dict[str, _Verifier] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        check_column(self, "entry_column")
        check_choice(self, "extract", _EXTRACTORS)
        self.__signature__ = takes("completion", self.entry_column)

    def setup(self) -> None:
        """Import the package; raise `RewardInputError` if it is not installed."""
        _package()

    def __call__(self, **arguments: Any) -> float:
        entry = self._entry(arguments[self.entry_column])
        verify = self._verifier(entry)
        answer = _EXTRACTORS[self.extract](text_of(self, "completion", arguments["completion"]))
        if answer is None:
            return 0.0
        try:
            return _verified(verify, entry, answer)
        except _UnreadableError as failure:
            self._check(verify, entry, failure)
            return 0.0

    def _entry(self, value: Any) -> Mapping[str, Any]:
        try:
            entry = json.loads(value) if isinstance(value, str) else value
            assert isinstance(entry["metadata"]["source_dataset"], str)
        except (ValueError, TypeError, KeyError, AssertionError) as error:
            raise RewardError(
                f"ReasoningGym: column '{self.entry_column}' of this row is {shorten(repr(value))}; expected an entry "
                "of reasoning-gym as JSON, with question, answer and metadata.source_dataset"
            ) from error
        return entry

    def _verifier(self, entry: Mapping[str, Any]) -> _Verifier:
        task = entry["metadata"]["source_dataset"]
        if task not in self._verifiers:
            try:
                self._verifiers[task] = _package().get_score_answer_fn(task)
            except ValueError as error:
                raise RewardError(
                    f"ReasoningGym: the installed reasoning-gym has no task '{task}' ({error})"
                ) from error
        return self._verifiers[task]

    def _check(self, verify: _Verifier, entry: Mapping[str, Any], failure: _UnreadableError) -> None:
        """Raise `RewardError` if the verifier cannot judge the entry's own answer either: then the row is at fault."""
        try:
            _verified(verify, entry, entry.get("answer"))
        except _UnreadableError as error:
            raise RewardError(
                f"ReasoningGym: the verifier of '{entry['metadata']['source_dataset']}' fails on the row's own answer "
                f"({error}); leave the row out"
            ) from failure


class _UnreadableError(Exception):
    """A verifier raised on an answer."""


def _verified(verify: _Verifier, entry: Mapping[str, Any], answer: Any) -> float:
    """Return the verifier's score; raise `_UnreadableError` for whatever it raises, and for answers that are code."""
    task = entry["metadata"]["source_dataset"]
    if any(isinstance(text, str) and is_code(task, text) for text in (answer, entry.get("answer"))):
        raise _UnreadableError("the verifier would run the answer as code")
    try:
        return float(verify(answer=answer, entry=entry))
    except Exception as error:
        raise _UnreadableError(f"{type(error).__name__}: {error}") from error


def _package() -> Any:
    try:
        import reasoning_gym
    except ImportError as error:
        raise RewardInputError(
            f"ReasoningGym needs the package reasoning-gym, which cannot be imported ({error}); "
            "pip install 'rlkl[reasoning-gym]'"
        ) from error
    return reasoning_gym
