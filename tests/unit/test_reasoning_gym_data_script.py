"""`recipes/reasoning_gym_data.py` writes rows that `rlkl train` and the reward read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from reward_models import ReasoningGym
from tests.unit.docs.scripts import ROOT


def write(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "recipes" / "reasoning_gym_data.py", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_rows_take_the_tasks_in_turn_and_their_own_answers_score_1(tmp_path: Path):
    target = tmp_path / "new" / "data.jsonl"
    done = write(target, "--rows", 5, "--tasks", "gcd,spell_backward", "--seed", 3)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["gcd-0", "spell_backward-0", "gcd-1", "spell_backward-1", "gcd-2"]
    reward = ReasoningGym()
    for row in rows:
        entry = json.loads(row["entry"])
        assert (row["prompt"], row["task"]) == (entry["question"], entry["metadata"]["source_dataset"])
        assert reward(completion=f"<answer>{entry['answer']}</answer>", entry=row["entry"]) == 1


def test_the_same_seed_gives_the_same_file(tmp_path: Path):
    files = [tmp_path / name for name in ("a", "b", "c")]
    for file, seed in zip(files, (1, 1, 2), strict=True):
        assert write(file, "--rows", 4, "--seed", seed).returncode == 0
    first, again, other = (file.read_text() for file in files)
    assert first == again != other


def test_tasks_that_do_not_exist_or_cannot_be_stored_are_bad_input(tmp_path: Path):
    for task, message in (("nothing", "'nothing'"), ("rearc", "change when they are written as JSON")):
        done = write(tmp_path / "data.jsonl", "--tasks", task, "--rows", 2)
        assert done.returncode == 2
        assert message in done.stderr
    assert not (tmp_path / "data.jsonl").exists()
