"""`rlkl score`: rewards on data that are there, by the path that training takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlkl.cli import main
from rlkl.tasks.characters import EOS_ID, character_tokenizer

REWARDS = """
def right(completion, answer):
    return float(completion == answer)

def parts(completion):
    return {"characters": len(completion), "digits": sum(map(str.isdigit, completion))}

def longest(group):
    return [text == max(group.completions, key=len) for text in group.completions]

def number(completion):
    return float(completion)

def tokens(completion_ids):
    return completion_ids[-1] == EOS and len(completion_ids)

def of_group(group):
    return list(map(len, group.completion_ids))

def of_prompt(completion, prompt_ids):
    return len(prompt_ids)

def of_group_prompt(group):
    return [float(len(group.prompt_ids))] * len(group)

def maybe(completion, completion_ids=()):
    return len(completion_ids)

def others(completion, **others):
    return sum(others["completion_ids"])
""".replace("EOS", str(EOS_ID))
ROWS = [
    {"prompt": "1+1=", "completion": "2", "answer": "2"},
    {"prompt": "1+1=", "completion": "15", "answer": "2"},
    {"prompt": "2+1=", "completion": ["x", "3"], "answer": "3"},
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.py").write_text(REWARDS)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def scored(here: Path, *arguments: str) -> list[dict]:
    assert main(["score", "--data", "rows.jsonl", "--out", "out.jsonl", *arguments]) == 0
    return [json.loads(line) for line in (here / "out.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("mode", ["inline", "thread", "process"])
def test_several_rewards_in_any_mode(here: Path, mode: str, capsys: pytest.CaptureFixture[str]):
    named = [f"--reward=my.py:{name}" for name in ("right", "parts", "longest")]
    rows = scored(here, *named, f"mode={mode}")
    assert [row["completion"] for row in rows] == ["2", "15", "x", "3"]
    assert [row["reward/right"] for row in rows] == [1.0, 0.0, 0.0, 1.0]
    assert [row["reward/longest"] for row in rows] == [0.0, 1.0, 1.0, 0.0]
    assert [row["reward/parts/digits"] for row in rows] == [1.0, 2.0, 0.0, 1.0]
    assert [row["reward"] for row in rows] == [3.0, 5.0, 2.0, 3.0]
    output = capsys.readouterr().out
    for word in ("right", "digits", "median ms", "4 samples in", "1+1="):
        assert word in output


def test_failures_are_counted_and_shown(here: Path, capsys: pytest.CaptureFixture[str]):
    rows = scored(here, "--reward=my.py:number", "on_error=drop_sample", "max_failed_fraction=0.5")
    assert [row["reward"] for row in rows] == [2.0, 15.0, None, 3.0]
    assert rows[2]["failed"] == ["number"]
    assert "could not convert string to float: 'x'" in capsys.readouterr().out


def test_a_recipes_rewards(here: Path):
    rows = scored(here, "quickstart", "rewards[0].weight=2")
    assert [row["reward"] for row in rows] == [2.0, 0.0, 0.0, 2.0]


def test_token_ids_come_from_a_tokenizer_or_from_the_data(here: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["score", "--data", "rows.jsonl", "--reward", "my.py:tokens"]
    assert main(arguments) == 2
    assert "reads 'completion_ids', and text alone has no token ids: give --tokenizer" in capsys.readouterr().err
    character_tokenizer().save_pretrained(here / "model")
    rows = scored(here, "--reward=my.py:tokens", "--tokenizer=model")
    assert [row["reward"] for row in rows] == [2.0, 3.0, 2.0, 2.0]
    given = [{"prompt": "1+1=", "completion": "2", "completion_ids": [9, 9, 9, EOS_ID]}]
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    assert [row["reward"] for row in scored(here, "--reward=my.py:tokens")] == [4.0]


def test_completions_are_cut_at_the_recipes_stop_texts(here: Path):
    character_tokenizer().save_pretrained(here / "model")
    rows_of(here, {"prompt": "1+1=", "completion": ["2;Q:3+3", "2"], "answer": "2"})
    words = ["quickstart", "rewards=[{function: 'my.py:right'}, {function: 'my.py:maybe'}]", "--tokenizer=model"]
    whole = scored(here, *words)
    assert [row["completion"] for row in whole] == ["2;Q:3+3", "2"]
    assert [row["reward/right"] for row in whole] == [0.0, 1.0]
    assert [row["reward/maybe"] for row in whole] == [8.0, 2.0]
    cut = scored(here, *words, "rollout.stop=[';Q', '+']")
    assert [row["completion"] for row in cut] == ["2", "2"]
    assert [row["reward/right"] for row in cut] == [1.0, 1.0]
    assert [row["reward/maybe"] for row in cut] == [3.0, 2.0]  # "2;Q", the stop text's tokens kept; "2" and its end


PAIRED = {"prompt": "1+1=", "completion": ["2", "15"], "completion_ids": [[9, 9, EOS_ID], [9, EOS_ID]]}


def rows_of(here: Path, *rows: dict) -> None:
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("name", ["tokens", "of_group", "maybe"])
def test_each_text_of_a_list_has_the_ids_that_are_given_for_it(here: Path, name: str):
    rows_of(here, PAIRED)
    assert [row["reward"] for row in scored(here, f"--reward=my.py:{name}")] == [3.0, 2.0]


@pytest.mark.parametrize(
    ("completion", "ids"),
    [("2", [[9]]), ("2", 9), ("2", ["9"]), (["2", "15"], [9, 9]), (["2", "15"], [[9]]), (["2"], [9]), ("2", [True])],
)
def test_ids_that_do_not_go_with_the_texts_are_refused(
    here: Path, capsys: pytest.CaptureFixture[str], completion: object, ids: object
):
    rows_of(here, {"prompt": "1+1=", "completion": completion, "completion_ids": ids})
    assert main(["score", "--data=rows.jsonl", "--reward=my.py:tokens"]) == 2
    assert "column 'completion_ids' has to be a list of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "paired", "code", "message"),
    [
        ("of_prompt", True, 2, "reads 'prompt_ids', and text alone has no token ids: give --tokenizer PATH"),
        ("of_group_prompt", True, 1, "raised RewardInputError"),
        ("maybe", False, 2, "reads 'completion_ids', and text alone has no token ids"),
        ("of_group", False, 1, "raised RewardInputError"),
        ("others", False, 1, "raised RewardInputError"),
    ],
)
@pytest.mark.parametrize("mode", ["inline", "process"])
def test_nothing_is_scored_by_ids_that_are_not_there(
    here: Path, capsys: pytest.CaptureFixture[str], name: str, paired: bool, code: int, message: str, mode: str
):
    rows_of(here, PAIRED if paired else {"prompt": "1+1=", "completion": ["2", "15"]})
    assert main(["score", "--data=rows.jsonl", f"--reward=my.py:{name}", f"mode={mode}"]) == code
    error = capsys.readouterr().err
    assert message in error
    assert "give --tokenizer PATH" in error


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--data=rows.jsonl"], 2, "needs --reward FILE:FUNCTION, or a recipe first"),
        (["quickstart", "--reward=my.py:right", "--data=rows.jsonl"], 2, "a recipe or --reward, not both"),
        (["--reward=my.py:rigth", "--data=rows.jsonl"], 2, "did you mean 'right'"),
        (["--reward=my.py:right", "--data=rows.jsonl", "mod=process"], 2, "Did you mean rewards[0].mode?"),
        (["--reward=my.py:right", "--data=row.jsonl"], 2, "did you mean 'rows.jsonl'"),
        (["--reward=my.py:right", "--data=wrong.jsonl"], 2, "has no column 'completion'"),
        (["--reward=my.py:right", "--data=bare.jsonl"], 2, "'answer' is not available"),
        (["--reward=my.py:number", "--data=rows.jsonl"], 1, "'number' raised ValueError on prompt row-2"),
        (["--reward=my.py:tokens", "--data=rows.jsonl", "--tokenizer=nowhere"], 2, "--tokenizer nowhere"),
        (["--reward=my.py:tokens", "--data=rows.jsonl", "--tokenizer=odd"], 2, "--tokenizer = 'odd': its config.json"),
    ],
)
def test_what_cannot_work_says_why(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
):
    character_tokenizer().save_pretrained(here / "odd")
    (here / "odd" / "config.json").write_text('{"model_type": "unheard"}')
    (here / "wrong.jsonl").write_text('{"prompt": "1+1=", "completions": "2", "answer": "2"}\n')
    (here / "bare.jsonl").write_text('{"prompt": "1+1=", "completion": "2"}\n')
    assert main(["score", *arguments]) == code
    assert message in capsys.readouterr().err


def test_the_95_percent_time_lies_between_the_median_and_the_largest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data, rewards = tmp_path / "two.jsonl", tmp_path / "uneven.py"
    data.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": "c"}\n')
    rewards.write_text("import time\n\ndef f(completion):\n    time.sleep(0.2 * (completion == 'c'))\n    return 1\n")
    assert main(["score", "--reward", f"{rewards}:f", "--data", str(data)]) == 0
    times = capsys.readouterr().out.partition("time in")[2].splitlines()[1].split()
    median_ms, usual_ms, most_ms = map(float, times[2:5])
    assert median_ms <= usual_ms <= most_ms
