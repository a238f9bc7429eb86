"""Keys of kept scores: the same in every process for equal arguments, and different where these differ."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlkl.rewards.function.arguments import Call
from rlkl.rewards.scoring.cache import ScoreCache

IN_ANOTHER_PROCESS = """
import sys
from pathlib import Path
from rlkl.rewards.function.arguments import Call
from rlkl.rewards.scoring.cache import ScoreCache
words = {f"word {n}" for n in range(50)}
arguments = {"answer": {"words": words, "frozen": frozenset(words), 1: [words], (2, "x"): None}}
cache = ScoreCache(Path(sys.argv[1]), name="r", fingerprint="f")
print(cache.key(Call(unit="sample", arguments=arguments, tokens=(1,)), ("p", "c")))
"""


def key(folder: Path, answer: Any) -> str:
    cache = ScoreCache(folder, name="r", fingerprint="f")
    try:
        return cache.key(Call(unit="sample", arguments={"answer": answer}, tokens=(1,)), ("p", "c"))
    finally:
        cache.close()


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ({1: "a", "1": "b"}, {"1": "b", 1: "a"}),
        ({(1, 2): "a", "x": "b", None: 1}, {None: 1, "x": "b", (1, 2): "a"}),
        ({"a", 1, (2,)}, {(2,), 1, "a"}),
        ([{"deep": {3, "3"}}], [{"deep": {"3", 3}}]),
    ],
)
def test_order_is_no_part_of_the_key_where_there_is_none(tmp_path: Path, one: Any, same: Any):
    assert key(tmp_path, one) == key(tmp_path, same)


def test_values_that_differ_have_keys_that_differ(tmp_path: Path):
    different = [
        {1: "a"}, {"1": "a"}, {(1,): "a"}, {"1": "b"}, [1], (1,), {1}, [[1]], 1, 1.0, True, "1", None, b"1",
        ["dict", [1, "a"]], ["set", 1], {1, 2}, [1, 2], [2, 1],
    ]  # fmt: skip
    assert len({key(tmp_path, value) for value in different}) == len(different)


def test_sets_and_mixed_keys_have_the_same_key_in_every_process(tmp_path: Path):
    found = {
        subprocess.run(
            [sys.executable, "-c", IN_ANOTHER_PROCESS, str(tmp_path)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1
    assert len(found.pop().strip()) == 32
