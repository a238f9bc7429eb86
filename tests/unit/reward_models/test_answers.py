"""Exact and numeric comparison, and finding the answer in a completion."""

from __future__ import annotations

import pytest

from reward_models import ExactMatch, NumericMatch
from reward_models.extraction import all_boxed, boxed, fenced, last_line, last_number
from rlkl.errors import RewardError, RewardInputError


@pytest.mark.parametrize(
    ("settings", "completion", "answer", "expected"),
    [
        ({}, " Paris \n", "Paris", 1.0),
        ({}, "paris", "Paris", 0.0),
        ({"ignore_case": True}, "PARIS", "Paris", 1.0),
        ({}, "New   York", "New York", 1.0),
        ({"ignore_space": False}, "New   York", "New York", 0.0),
        ({}, "B", ["A", "B"], 1.0),
        ({}, "C", ["A", "B"], 0.0),
        ({}, "", "Paris", 0.0),
        ({}, "42", 42, 1.0),
        ({"extract": "last_line"}, "Let me think.\nParis", "Paris", 1.0),
        ({"extract": "boxed"}, r"\boxed{a} so \boxed{\text{b}}", r"\text{b}", 1.0),
        ({"extract": "boxed"}, "Paris", "Paris", 0.0),
        ({"extract": "last_number"}, "first 3, then 4.", "4", 1.0),
        ({}, "anything", None, None),
    ],
)
def test_exact_match(settings, completion, answer, expected):
    assert ExactMatch(**settings)(completion=completion, answer=answer) == expected


@pytest.mark.parametrize(
    ("settings", "completion", "answer", "expected"),
    [
        ({}, "it is 1,234.5", "1234.5", 1.0),
        ({}, "it is 1,234.5", 1234.5, 1.0),
        ({}, "3/4", 0.75, 1.0),
        ({}, "-3e5 m", "-300000", 1.0),
        ({}, "12%", "0.12", 1.0),
        ({}, "12", "0.12", 0.0),
        ({"extract": "boxed"}, r"\boxed{$ 5}", "$5.00", 1.0),
        ({}, "1.0000005", 1, 1.0),
        ({}, "1.000005", 1, 0.0),
        ({"relative_tolerance": 0.0}, "1.0000005", 1, 0.0),
        ({"absolute_tolerance": 0.5}, "7.5", 7, 1.0),
        ({"absolute_tolerance": 0.5}, "7.6", 7, 0.0),
        ({}, "1e999999999", 1, 0.0),
        ({}, "1/0", 1, 0.0),
        ({"extract": "whole"}, "nan", 1, 0.0),
        ({}, "no number", 1, 0.0),
        ({}, "2", [1, 2], 1.0),
        ({}, "2", None, None),
        ({"relative_tolerance": 0.0}, "0.3", 0.3, 1.0),
        ({}, "between 5-10", 10, 1.0),
        ({}, "between 5-10", -10, 0.0),
        ({}, "on 2024-10-05", 5, 1.0),
        ({}, "(3)-4", 4, 1.0),
        ({}, "x=-4", -4, 1.0),
        ({}, "x is -4", -4, 1.0),
    ],
)
def test_numeric_match(settings, completion, answer, expected):
    assert NumericMatch(**settings)(completion=completion, answer=answer) == expected


def test_wrong_data_is_an_error_and_no_zero():
    with pytest.raises(RewardError, match="column 'answer' of this row is 'blue', which is no number"):
        NumericMatch()(completion="1", answer="blue")
    with pytest.raises(RewardError, match=r"column 'gold' of this row is \{'a': 1\}"):
        ExactMatch(answer_column="gold")(completion="1", gold={"a": 1})
    with pytest.raises(RewardError, match=r"'completion' of this row is 1 \(int\); expected text"):
        ExactMatch()(completion=1, answer="1")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"extract": "boxes"}, "did you mean 'boxed'"),
        ({"answer_column": "my column"}, "setting 'answer_column' is 'my column'; expected the name of a column"),
        ({"relative_tolerance": -1}, "'relative_tolerance' is -1; expected a number >= 0"),
        ({"absolute_tolerance": float("nan")}, "'absolute_tolerance' is nan"),
        ({"absolute_tolerance": True}, "'absolute_tolerance' is True"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(RewardInputError, match=message):
        NumericMatch(**settings)


def test_extraction():
    assert all_boxed(r"\boxed{a{b}c} \boxed{\}} \boxed{never closed") == ["a{b}c", r"\}"]
    assert boxed(r"\boxed {x}") == "x"
    assert boxed("\\boxed{" * 3) is None
    assert (last_line(" \n "), last_line("a\n b \n\n")) == (None, "b")
    assert last_number("3 apples, .5 pears, -2") == "-2"
    text = "```python\nfirst\n```\n```json\n{}\n```\n```py\nlast\n```"
    assert fenced(text, ("python", "py")) == "last\n"
    assert fenced(text, ("json",)) == "{}\n"
    assert fenced(text, ("rust",)) is None
    assert fenced("```\nplain\n```", ("rust",)) == "plain\n"


def test_a_block_ends_at_its_first_closing_fence():
    assert fenced("```py\na\n```js\nb\n  ```  \nc", ("py",)) == "a\n```js\nb\n"
    assert fenced("```py\nnever closed", ("py",)) is None
    assert fenced("``` a `b`\nno fence\n```", ()) is None
    assert fenced("```\r\nwindows\r\n```\r\n", ()) == "windows\r\n"


def test_extraction_takes_long_degenerate_texts():
    """A pattern that looks for the closing fence from each opening one would take hours here."""
    assert fenced("```a\n" * 200_000, ("a",)) is None
    assert last_number("1-" * 200_000) == "1"
    assert boxed("\\boxed{" * 200_000) is None
