"""`rlkl plan` refuses the models, data and rewards that `rlkl train` would refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlkl.cli import main
from rlkl.commands.plan_inputs import check_inputs
from rlkl.recipe.io import load_recipe

REWARD = "def closeness(completion: str, answer: str) -> float:\n    return 1.0\n"
CHAT = [{"role": "user", "content": "What is 2+3?"}]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_reward.py").write_text(REWARD)
    rows = [{"prompt": prompt, "answer": "5"} for prompt in ("2+3=", CHAT)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "bad.jsonl").write_text('{"prompt": "2+3="}\n{"prompt"\n{"prompt": null}\n')
    (tmp_path / "words.jsonl").write_text('{"prompt": "2+3=", "answers": "5"}\n')


OWN = ("data.source=rows.jsonl", "rewards=[{function: my_reward.py:closeness}]")


def test_a_recipe_whose_files_are_there_passes():
    check_inputs(load_recipe("quickstart"))
    check_inputs(load_recipe("quickstart", *OWN))
    assert main(["plan", "quickstart", *OWN]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.path=/no/such/model"], "model.path = '/no/such/model': there is no such folder"),
        (["models={teacher: {path: task:sums}}"], "models.teacher.path = 'task:sums': no built-in task"),
        (["data.source=row.jsonl"], "data.source = 'row.jsonl' does not exist; did you mean 'rows.jsonl'?"),
        (["data.prompt_column=question"], "data.prompt_column = 'question' is not a column of data.source"),
        (
            [
                "models={teacher: {path: task:arithmetic}}",
                "update={rule: distill, on_policy_fraction: 0.5, answer_column: answr}",
            ],
            "update.answer_column = 'answr' is not a column of data.source",
        ),
        (["data.source=bad.jsonl"], "data.source = 'bad.jsonl': 1 of 3 rows kept"),
        (["data.source=words.jsonl"], "reward 'closeness', prompt row-0: "),
        (["rewards=[{function: my_reward.py:close}]"], "rewards[].function = 'my_reward.py:close'"),
        (["rewards=[{function: my_rewards.py:closeness}]"], "there is no reward file"),
        (["rollout.engine=my_engine:Mine"], "rollout.engine = 'my_engine:Mine' cannot be imported"),
        (["rewards=[{function: my_reward.py:closeness, role: monitor}]"], "only monitors: nothing to learn from"),
    ],
)
def test_what_train_would_refuse_ends_with_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["plan", "quickstart", *OWN, *words]) == 2
    printed = capsys.readouterr()
    assert f"error: {message}" in printed.err
    assert printed.out == ""


def test_names_of_a_hub_are_left_to_the_run_and_a_model_that_is_not_here_is_a_warning(
    capsys: pytest.CaptureFixture[str],
):
    assert main(["plan", "quickstart", "model.path=someone/model", "data.source=someone/data", *OWN[1:]]) == 0
    assert "- model.path = 'someone/model' is no folder in" in capsys.readouterr().out


def test_rewards_may_come_from_python():
    assert check_inputs(load_recipe("quickstart", "rewards=[]")) == ()


def test_rows_that_train_would_leave_out_are_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [json.dumps({"prompt": f"{number}+1=", "answer": "5"}) for number in range(140)]
    (tmp_path / "most.jsonl").write_text("\n".join([*rows, '{"prompt"']))
    held_out = "eval={data: {source: most.jsonl}}"
    assert main(["plan", "quickstart", *OWN, "data.source=most.jsonl", held_out]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "- data.source = most.jsonl: 140 of 141 rows kept (0 empty, 1 malformed, 0 too long): row 141" in printed
    assert "- eval.data.source = most.jsonl: 140 of 141 rows kept" in printed


def test_all_rows_need_the_columns_of_the_rewards(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [{"prompt": f"{number}+1="} | ({"answer": "5"} if number < 50 else {}) for number in range(140)]
    (tmp_path / "some.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for words in (["data.source=some.jsonl"], ["eval={data: {source: some.jsonl}}"]):
        assert main(["plan", "quickstart", *OWN, *words]) == 2
        told = capsys.readouterr().err
        assert "reward 'closeness': its argument 'answer' is missing or null in 90 of 140 rows" in told
        assert "(first: prompt row-50)" in told


def test_rows_without_a_column_are_a_warning_if_their_samples_may_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = [{"prompt": "1+1=", "answer": "2"}, {"prompt": "1+2=", "answer": None}]
    (tmp_path / "some.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rewards = "rewards=[{function: my_reward.py:closeness, on_error: drop_sample}]"
    assert main(["plan", "quickstart", "data.source=some.jsonl", rewards]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "- reward 'closeness': its argument 'answer' is missing or null in 1 of 2 rows" in printed
