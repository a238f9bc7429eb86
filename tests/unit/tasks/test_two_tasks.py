"""The world of two tasks: which rows and rewards are of which, and how the model is taught."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlkl.system.compat import ensure_torch_extras
from rlkl.tasks import cache, task_reward, task_rows
from rlkl.tasks.reviews import Reviews
from rlkl.tasks.two_tasks import ReviewsAndArithmetic, right_answer

ensure_torch_extras()
NAME = "reviews_and_arithmetic"
OPENING = "the plot of this western was"
SUM = "the sum of 7 and 12 was"


@pytest.mark.parametrize(
    ("prompt", "wanted"), [(SUM, "19 ."), ("the sum of 0 and 0 was", "0 ."), (OPENING, ""), ("7 + 12", "")]
)
def test_the_right_answer_of_a_prompt(prompt: str, wanted: str):
    assert right_answer(prompt) == wanted


def test_rows_are_both_kinds_and_texts_hold_the_answers():
    assert len(task_rows(NAME)) == len(task_rows(f"{NAME}/reviews")) + len(task_rows(f"{NAME}/sums")) == 200 + 231
    (text,) = [row["text"] for row in task_rows(f"{NAME}/texts") if row["id"] == "7+12"]
    assert text == f"{SUM} 19 ."


@pytest.mark.parametrize("kind", ["reviews", "sums", "texts"])
def test_each_kind_is_divided_as_the_whole_is(kind: str):
    train, test = ({row["prompt"] for row in task_rows(f"{NAME}/{kind}/{part}")} for part in ("train", "test"))
    assert not train & test
    assert len(test) > len(train) / 10
    assert test <= {row["prompt"] for row in task_rows(f"{NAME}/test")}


def test_rewards_abstain_on_the_other_kind():
    gold, sums = task_reward(f"{NAME}/gold"), task_reward(f"{NAME}/sums")
    assert sums(prompt=SUM, completion="19 .") == 1.0
    assert sums(prompt=SUM, completion="18 .") == sums(prompt=SUM, completion="19") == 0.0
    assert sums(prompt=OPENING, completion="brilliant .") is None
    assert gold(prompt=OPENING, completion="brilliant .") == 1.0
    assert gold(prompt=SUM, completion="19 .") is task_reward(NAME)(prompt=SUM, completion="19 .") is None


def test_demonstrations_take_turns():
    from rlkl.tasks.characters import EOS_ID, word_tokenizer
    from rlkl.tasks.reviews_language import WORDS

    tokenizer = word_tokenizer([*WORDS, "sum", *map(str, range(21))])
    world = ReviewsAndArithmetic(steps=5, sums_per_step=3, reviews=Reviews(batch_size=2))
    batches = list(world._demonstrations(tokenizer))
    assert [len(ids_BT) for ids_BT, _ in batches] == [2, 3, 2, 3, 2]
    for ids_T, length in zip(*batches[1], strict=True):
        prompt, answer = tokenizer.decode(ids_T[:length]), tokenizer.decode(ids_T[length:-1])
        assert isinstance(prompt, str)
        assert answer == right_answer(prompt)
        assert ids_T[-1] == EOS_ID


def test_the_key_of_the_model_holds_the_settings_and_sources_of_the_other_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    before = cache._fingerprint(ReviewsAndArithmetic())
    assert cache._fingerprint(ReviewsAndArithmetic(reviews=Reviews(error_fraction=0.2))) != before
    source = tmp_path / "reviews.py"
    source.write_text("# another grammar\n")
    real = cache.inspect.getfile
    monkeypatch.setattr(cache.inspect, "getfile", lambda kind: str(source) if kind is Reviews else real(kind))
    assert cache._fingerprint(ReviewsAndArithmetic()) != before
