"""A short `make torture`: runs that are killed at random moments end with the bits of an undisturbed one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.torture import torture


def test_a_run_that_is_killed_three_ways_ends_with_the_same_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--kills", "3", "--seed", "5", "--folder", str(tmp_path), "--cases", "grpo"]
    targets = ["--targets", "raylet,whole tree,reward worker", "--set", "rollout.engine=hf", "rollout.workers=1"]

    code = torture.main([*words, *targets])

    printed = capsys.readouterr().out
    assert code == 0, printed
    assert printed.count(": the same bits\n") == 3
    hits = [int(count) for count in re.findall(r", (\d+) process\(es\) after", printed)]
    assert len(hits) == 3, printed
    assert all(hits), printed
    assert printed.endswith("| raylet | 1 of 1 | 0 |\n| whole tree | 1 of 1 | 0 |\n| reward worker | 1 of 1 | 0 |\n")
