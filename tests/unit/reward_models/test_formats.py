"""Form, length and regular expressions."""

from __future__ import annotations

import pytest

from reward_models import FormatMatch, Length, Regex
from rlkl.errors import RewardError, RewardInputError

GOOD = "<think>\n1 + 1 is 2\n</think>\nSo \\boxed{2}."


@pytest.mark.parametrize(
    ("settings", "completion", "expected"),
    [
        ({}, GOOD, 1.0),
        ({}, "  " + GOOD, 1.0),
        ({}, "Well: " + GOOD, 0.0),
        ({}, GOOD + r" or \boxed{3}", 0.0),
        ({}, GOOD.replace("1 + 1 is 2", ""), 0.0),
        ({}, GOOD.replace("1 + 1 is 2", r"\boxed{2}"), 0.0),
        ({}, GOOD.replace("</think>", ""), 0.0),
        ({}, GOOD.replace("1 +", "<think>1 +"), 0.0),
        ({}, GOOD.replace("So", "</think> So"), 0.0),
        ({}, GOOD.replace(r"\boxed{2}", "2"), 0.0),
        ({}, GOOD.replace(r"\boxed{2}", r"\boxed{ }"), 0.0),
        ({"opened": "<think>"}, GOOD.removeprefix("<think>"), 1.0),
        ({"partial": True}, GOOD.replace(r"\boxed{2}", "2"), 0.5),
        ({"partial": True}, "nothing", 0.0),
        ({"ending": "text"}, "<think>a</think> b", 1.0),
        ({"ending": "text"}, "<think>a</think> ", 0.0),
        ({"blocks": ["think", "answer"], "ending": "nothing"}, "<think>a</think><answer>b</answer>\n", 1.0),
        ({"blocks": ["think", "answer"], "ending": "nothing"}, "<answer>b</answer><think>a</think>", 0.0),
        ({"blocks": ["think", "answer"], "ending": "nothing"}, "<think>a</think><answer>b</answer> more", 0.0),
        ({"blocks": []}, r"just \boxed{2}", 1.0),
        ({}, "", 0.0),
    ],
)
def test_format(settings, completion, expected):
    assert FormatMatch(**settings)(completion=completion) == expected


@pytest.mark.parametrize(
    ("settings", "lengths"),
    [
        ({"limit": 3}, {0: 0, 3: 0, 4: -1, 99: -1}),
        ({"limit": 3, "buffer": 4}, {3: 0, 4: -0.25, 7: -1, 8: -1}),
        ({"minimum": 2, "limit": 3, "penalty": 0.5}, {1: -0.5, 2: 0, 3: 0, 4: -0.5}),
        ({"target": 4, "buffer": 4}, {0: -1, 3: -0.25, 4: 0, 5: -0.25, 10: -1}),
    ],
)
@pytest.mark.parametrize("unit", ["tokens", "words", "characters"])
def test_length(settings, lengths, unit):
    length = Length(unit=unit, **settings)
    for count, expected in lengths.items():
        arguments = {
            "tokens": {"completion_ids": (7,) * count},
            "words": {"completion": "word " * count},
            "characters": {"completion": "x" * count},
        }[unit]
        assert length(**arguments) == expected


@pytest.mark.parametrize(
    ("settings", "completion", "expected"),
    [
        ({"pattern": r"\d+"}, "a 1 b", 1.0),
        ({"pattern": r"\d+"}, "a", 0.0),
        ({"pattern": "sorry", "found": -1, "flags": ["ignore_case"]}, "I am Sorry", -1.0),
        ({"pattern": r"\d", "match": "full"}, "12", 0.0),
        ({"pattern": r"\d+", "match": "full"}, "12", 1.0),
        ({"pattern": r"\d", "match": "count", "found": 0.5}, "1 2 3", 1.5),
        ({"pattern": r"\d", "match": "count", "most": 2}, "1 2 3", 2.0),
        ({"pattern": r"\d", "match": "count", "missing": -1}, "none", -1.0),
        ({"pattern": "^b.c", "flags": ["multiline", "dot_all"]}, "a\nb\nc", 1.0),
    ],
)
def test_regex(settings, completion, expected):
    assert Regex(**settings)(completion=completion) == expected


def test_an_expression_that_backtracks_for_ever_is_an_error():
    endless = Regex(pattern=r"(x+x+)+y", timeout_s=0.2)
    assert endless(completion="xxxxy") == 1.0
    with pytest.raises(RewardError, match=r"took longer than 0.2 s on 'xxx"):
        Regex(pattern=r"^(?:(\w|\w\w)+)+\1$", timeout_s=0.2)(completion="x" * 60 + "!")


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (FormatMatch, {"blocks": ["<think>"]}, "setting 'blocks' is .*expected a list of tags without brackets"),
        (FormatMatch, {"blocks": ["a", "a"]}, "tags that all differ"),
        (FormatMatch, {"ending": "box"}, "did you mean 'boxed'"),
        (Length, {}, "nothing to hold to"),
        (Length, {"target": 3, "limit": 4}, "not both"),
        (Length, {"minimum": 5, "limit": 4}, "'minimum' is 5; expected at most the limit, 4"),
        (Length, {"limit": 4.5}, "'limit' is 4.5; expected a whole number >= 0"),
        (Length, {"limit": 4, "penalty": 0}, "'penalty' is 0; expected a number > 0"),
        (Regex, {"pattern": "("}, r"'pattern' is '\('; expected a regular expression"),
        (Regex, {"pattern": "a", "flags": ["loud"]}, "'flags' is"),
        (Regex, {"pattern": "a", "most": 2}, "only 'match: count' counts"),
    ],
)
def test_wrong_settings(kind, settings, message):
    with pytest.raises(RewardInputError, match=message):
        kind(**settings)
