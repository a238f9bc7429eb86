"""Parts of the rows of built-in worlds."""

from __future__ import annotations

import pytest

from rlkl.errors import InputError
from rlkl.tasks import TASKS, task_rows
from rlkl.tasks.reviews_language import gold_reward


@pytest.mark.parametrize("task", TASKS)
def test_train_and_test_share_no_prompt(task: str):
    train, test = (task_rows(f"{task}/{part}") for part in ("train", "test"))
    seen = {(row["prompt"], *row.get("images", ())) for row in train}

    assert len({row["id"] for row in train + test}) == len(train) + len(test)
    assert not seen & {(row["prompt"], *row.get("images", ())) for row in test}
    assert len(test) > len(train) / 10


@pytest.mark.parametrize("task", ["arithmetic", "reviews"])
def test_both_parts_together_are_the_rows(task: str):
    parts = task_rows(f"{task}/train") + task_rows(f"{task}/test")

    assert {row["id"] for row in parts} == {row["id"] for row in task_rows(task)}


def test_an_unknown_part_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"no rows called 'tset'; did you mean 'test'"):
        task_rows("arithmetic/tset")


def test_stored_pairs_are_divided_by_their_prompts():
    train, test = (task_rows(f"reviews/pairs/{part}") for part in ("train", "test"))

    assert {row["prompt"] for row in train} <= {row["prompt"] for row in task_rows("reviews/train")}
    assert {row["prompt"] for row in test} <= {row["prompt"] for row in task_rows("reviews/test")}
    assert len(train) + len(test) == len(task_rows("reviews/pairs"))
    assert len(test) > len(train) / 10


def test_scored_reviews_come_in_lists_of_four_with_the_logits_of_their_worth():
    rows = task_rows("reviews/scored")
    assert len(rows) == 8192
    for start in range(0, 400, 4):
        assert len({row["prompt"] for row in rows[start : start + 4]}) == 1
    assert all(row["score"] == 8 * gold_reward(row["prompt"], row["answer"]) for row in rows)
    assert len({row["score"] for row in rows}) > 20
