"""Buckets of prompts by a column, and the errors of columns that make none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlkl.data.curriculum.buckets import buckets_of, check_buckets
from rlkl.data.prompts import check_prompts
from rlkl.errors import DataError
from rlkl.recipe import DataSection
from rlkl.types import Prompt


def section(**curriculum: Any) -> DataSection:
    return DataSection.model_validate(
        {"source": "x.jsonl", "sampler": "bandit", "curriculum": {"bucket_column": "level", **curriculum}}
    )


def prompts(*levels: Any) -> list[Prompt]:
    return [Prompt(id=f"p{n}", text="", token_ids=(), columns={"level": level}) for n, level in enumerate(levels)]


def test_each_value_is_a_bucket():
    assert buckets_of(section(), prompts("hard", "easy", "hard", 3)) == [[3], [1], [0, 2]]


def test_few_numbers_are_buckets_in_their_order():
    assert buckets_of(section(), prompts(10, "9", 5.5, 9)) == [[2], [1, 3], [0]]


def test_many_numbers_are_cut_into_eight_buckets_of_about_equal_size():
    assert buckets_of(section(), prompts(*range(9, 0, -1))) == [[7, 8], [6], [5], [4], [3], [2], [1], [0]]
    sizes = [len(bucket) for bucket in buckets_of(section(), prompts(*range(20)))]
    assert sizes == [3, 2, 3, 2, 3, 2, 3, 2]


def test_equal_numbers_share_a_bucket():
    levels = [1] * 12 + list(range(2, 10))
    found = buckets_of(section(), prompts(*levels))
    assert found[0] == list(range(12))
    assert [levels[n] for bucket in found for n in bucket] == sorted(levels)


def test_one_text_makes_every_value_a_bucket():
    assert len(buckets_of(section(), prompts(*range(20), "many"))) == 21


@pytest.mark.parametrize(
    ("curriculum", "levels", "words"),
    [
        ({}, ["a", None], "the row of prompt 'p1' has no value"),
        ({}, ["a", "a"], "makes 1 bucket"),
        ({}, [1, 1.0, "1"], "makes 1 bucket"),
        ({}, [f"p{n}" for n in range(33)], r"makes 33 bucket\(s\) of the 33 prompts; .* numbers, which is cut into 8"),
        ({}, [*range(32), "nan"], r"makes 33 bucket\(s\)"),
    ],
)
def test_columns_that_make_no_buckets_are_refused(curriculum: dict[str, Any], levels: list[Any], words: str):
    with pytest.raises(DataError, match=words):
        check_buckets(section(**curriculum), prompts(*levels))


def test_the_rows_are_checked_before_a_run(tmp_path: Path):
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(f'{{"prompt": "{n}+1=", "level": {n}}}\n' for n in range(4)))
    good = section().model_copy(update={"source": str(source)})
    assert len(check_prompts(good)[0]) == 4
    with pytest.raises(DataError, match=r"data\.curriculum\.bucket_column = 'lvl' .*did you mean 'level'"):
        check_prompts(section(bucket_column="lvl").model_copy(update={"source": str(source)}))
    source.write_text('{"prompt": "1+1=", "level": 1}\n{"prompt": "1+2=", "level": 1}\n')
    with pytest.raises(DataError, match="makes 1 bucket"):
        check_prompts(good)


def test_without_a_column_nothing_is_checked():
    check_buckets(DataSection(source="x.jsonl"), prompts("a"))
