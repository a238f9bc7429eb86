"""The lexicon."""

from __future__ import annotations

import pytest

from reward_models import SentimentLexicon
from reward_models.sentiment import NEGATIVE, POSITIVE
from rlkl.errors import RewardInputError


@pytest.mark.parametrize(
    ("settings", "completion", "expected"),
    [
        ({}, "A wonderful film", 1 / 2),
        ({}, "a WONDERFUL, lovely film!", 2 / 3),
        ({}, "A dull film", -1 / 2),
        ({}, "wonderful but dull", 0.0),
        ({}, "not a good film", -1 / 2),
        ({}, "it wasn\N{RIGHT SINGLE QUOTATION MARK}t bad", 1 / 2),
        ({}, "not long. good", 1 / 2),
        ({}, "very good", 1.5 / 2.5),
        ({}, "the film", 0.0),
        ({}, "", 0.0),
        ({}, "good good good", 3 / 4),
        ({"distinct": True}, "good good good", 1 / 2),
        ({"score": "density"}, "a good film indeed", 1 / 4),
        ({"score": "density"}, "very very good good", 3 / 4),
        ({"score": "density"}, "so good", 3 / 4),
        ({"positive": ["crunchy"], "negative": ["good"]}, "crunchy and good", 0.0),
    ],
)
def test_sentiment(settings, completion, expected):
    assert SentimentLexicon(**settings)(completion=completion) == pytest.approx(expected)


def test_the_lists_share_no_word():
    assert not POSITIVE & NEGATIVE
    assert min(len(POSITIVE), len(NEGATIVE)) > 150


@pytest.mark.parametrize(
    "settings", [{"score": "sum"}, {"positive": ["Good"]}, {"positive": ["a"], "negative": ["a"]}, {"distinct": 1}]
)
def test_wrong_settings(settings):
    with pytest.raises(RewardInputError, match="SentimentLexicon: setting"):
        SentimentLexicon(**settings)
