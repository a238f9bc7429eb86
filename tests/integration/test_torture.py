"""A short `make torture`: a run that is killed at random moments ends with the bits of an undisturbed one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.torture import torture


def test_a_run_that_is_killed_three_ways_ends_with_the_same_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--kills", "1", "--seed", "4", "--folder", str(tmp_path), "--cases", "grpo"]
    targets = ["--targets", "raylet,whole tree,reward worker", "--set", "rollout.engine=hf", "rollout.workers=1"]

    code = torture.main([*words, *targets])

    printed = capsys.readouterr().out
    assert code == 0, printed
    assert re.search(r"1/1 grpo: .*; [34] starts: the same bits\n", printed), printed
    for target in ("raylet", "whole tree", "reward worker"):
        assert f"| {target} | 1 of 1 | 0 | " in printed
