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


def test_bins_hold_about_as_many_prompts_each():
    assert buckets_of(section(bins=2), prompts(9, "1", 5.5, 3)) == [[1, 3], [0, 2]]
    sizes = [len(bucket) for bucket in buckets_of(section(bins=3), prompts(*range(10)))]
    assert sizes == [4, 3, 3]


def test_equal_values_share_a_bin():
    assert buckets_of(section(bins=3), prompts(1, 1, 1, 1, 2, 3)) == [[0, 1, 2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("curriculum", "levels", "words"),
    [
        ({}, ["a", None], "the row of prompt 'p1' has no value"),
        ({}, ["a", "a"], "makes 1 bucket"),
        ({}, list(range(33)), r"makes 33 bucket\(s\) of the 33 prompts; .* data.curriculum.bins"),
        ({"bins": 2}, [1, 1, 1], "its numbers are too much alike"),
        ({"bins": 2}, [1, "many"], "'level' of prompt 'p1' holds 'many'"),
        ({"bins": 2}, [1, "nan"], "holds 'nan'"),
    ],
)
def test_columns_that_make_no_buckets_are_refused(curriculum: dict[str, Any], levels: list[Any], words: str):
    with pytest.raises(DataError, match=words):
        check_buckets(section(**curriculum), prompts(*levels))


def test_the_rows_are_checked_before_a_run(tmp_path: Path):
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(f'{{"prompt": "{n}+1=", "level": {n}}}\n' for n in range(4)))
    good = section(bins=2).model_copy(update={"source": str(source)})
    assert len(check_prompts(good)[0]) == 4
    with pytest.raises(DataError, match=r"data\.curriculum\.bucket_column = 'lvl' .*did you mean 'level'"):
        check_prompts(section(bucket_column="lvl").model_copy(update={"source": str(source)}))
    source.write_text('{"prompt": "1+1=", "level": 1}\n{"prompt": "1+2=", "level": 1}\n')
    with pytest.raises(DataError, match="makes 1 bucket"):
        check_prompts(good)


def test_without_a_column_nothing_is_checked():
    check_buckets(DataSection(source="x.jsonl"), prompts("a"))
