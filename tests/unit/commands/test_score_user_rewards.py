"""Rewards as users write them (tests/user_rewards), through ``rlkl score``; tests/integration trains on them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from rlkl.cli import main
from rlkl.recipe.io import load_recipe
from tests.user_rewards import table

ROWS = [("1+1=", "2", ["2", "15", "x", ""]), ("2+10=", "12", ["12", "so 3", "123", " 12 "])]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rows; the working directory is another one than the rewards'."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": prompt, "answer": answer, "completion": texts} for prompt, answer, texts in ROWS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "rows.jsonl"


def test_odd_and_plain_rewards_are_scored(data: Path, capfd: pytest.CaptureFixture[str]):
    recipe = load_recipe("quickstart").model_dump() | {"rewards": table.sections()}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["score", "recipe.yaml", "--data", str(data), "--out", "out.jsonl"]) == 0
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    samples = [(text, answer) for _, answer, texts in ROWS for text in texts]
    assert [row["completion"] for row in rows] == [text for text, _ in samples]
    for row, (text, answer) in zip(rows, samples, strict=True):
        table.check(row, text, answer)
        failed = table.name_of(table.RAISES) in row["failed"]
        assert failed == (len(text) == 3)
    told = capfd.readouterr()
    assert "scoring" not in told.out  # what rewards print does not get into the table
    assert "scoring '15'" in told.err


@pytest.mark.parametrize("reference", table.REFUSED)
def test_a_mistake_is_told_so_that_it_can_be_mended(data: Path, reference: str, capsys: pytest.CaptureFixture[str]):
    code, message = table.REFUSED[reference]
    assert main(["score", f"--reward={table.FOLDER / reference}", "--data", str(data)]) == code
    told = capsys.readouterr().err
    assert re.search(".*".join(map(re.escape, message.split(".*"))), told, re.DOTALL), told
    assert reference.partition(":")[2] in told or f"{reference.partition(':')[0]}'" in told


def test_a_batch_that_is_scored_one_by_one_is_told(data: Path, caplog: pytest.LogCaptureFixture):
    assert main(["score", f"--reward={table.FOLDER}/mistaken.py:mean_of_all", "--data", str(data)]) == 0
    assert "reward 'mean_of_all': a call with 8 samples returned [2.125] (list): expected a list" in caplog.text
    assert "each of them was scored alone" in caplog.text
