from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from rlkl.cli import main
from rlkl.errors import LearnerError, RewardError
from rlkl.recipe.io import dump_recipe, load_recipe


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Path | None]]:
    """Record the arguments that `rlkl train` passes on; the function that replaces the training returns 130."""
    calls: list[tuple[Any, Path | None]] = []

    def train(recipe: Any, *, resume_from: Path | None = None, allow_changed_rewards: bool = False) -> SimpleNamespace:
        calls.append((recipe, resume_from))
        if recipe.steps == 13:
            raise LearnerError("the gradient is not finite")
        if recipe.steps == 14:
            raise ZeroDivisionError
        return SimpleNamespace(exit_code=130)

    start = ModuleType("rlkl.training.setup")
    start.train = train  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "rlkl.training.setup", start)
    return calls


def test_train_passes_the_recipe_and_returns_the_runs_exit_code(trained: list[Any]) -> None:
    assert main(["train", "quickstart", "steps=3", "learner.lr=1e-4"]) == 130
    assert trained == [(load_recipe("quickstart", "steps=3", "learner.lr=1e-4"), None)]


@pytest.mark.usefixtures("trained")
def test_train_logs_the_warnings_that_plan_prints(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["quickstart", "steps=3", "update.kl_coef=0.1", "update.terms=[{term: kl}, {term: entropy, coef: 0}]"]
    main(["train", *words])
    logged = [record.getMessage() for record in caplog.records if record.name == "rlkl.commands.train"]
    assert [warning.partition(":")[0] for warning in logged] == [
        "update.terms[0]",
        "update.terms[1]",
        "checkpoint.every = 50 exceeds steps = 3",
    ]
    main(["plan", *words])
    listed = capsys.readouterr().out.rpartition("Warnings: ")[2].partition("\n")[2]
    assert "".join(f"- {warning}." for warning in logged).replace(" ", "") in "".join(listed.split())


def test_resume_takes_the_runs_own_recipe(tmp_path: Path, trained: list[Any]) -> None:
    (tmp_path / "recipe.yaml").write_text(dump_recipe(load_recipe("quickstart", "seed=5")))
    assert main(["train", "--resume", str(tmp_path), "steps=7"]) == 130
    assert trained == [(load_recipe("quickstart", "seed=5", "steps=7"), tmp_path)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "quickstart", "lr=3"], "Did you mean learner.lr?"),
        (["train"], "needs a recipe first"),
        (["train", "steps=3"], "needs a recipe first"),
        (["train", "--resume", "nowhere"], "has no recipe.yaml"),
        (["score", "steps=3", "--data", "rows.jsonl"], "or a recipe first"),
        (["train", "quickstart", "--allow-changed-rewards"], "goes with --resume RUN_DIR only"),
        (["plan", "nowhere.yaml"], "no recipe at nowhere.yaml"),
        (["keys", "lerner"], "no key is called 'lerner'; did you mean 'learner'?"),
        (["keys", "optimzer"], "no key is called 'optimzer'; did you mean 'learner.optimizer'?"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    arguments: list[str], message: str, trained: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert trained == []


def test_failed_run_is_exit_code_1_with_its_message(trained: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "quickstart", "steps=13"]) == 1
    assert capsys.readouterr().err == "error: the gradient is not finite\n"


def test_a_failed_run_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*_: Any, **__: Any) -> None:
        error = RewardError("reward 'gold' raised")
        error.add_note("All 7 finished steps are saved.")
        raise error

    monkeypatch.setattr("rlkl.training.setup.train", fails)
    assert main(["train", "quickstart"]) == 1
    assert capsys.readouterr().err == "error: reward 'gold' raised\nAll 7 finished steps are saved.\n"


@pytest.mark.usefixtures("trained")
def test_unforeseen_errors_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        main(["train", "quickstart", "steps=14"])


def test_plan_prints_the_resolved_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "quickstart", "update.variant=dapo", "learner.epochs=3"]) == 0
    printed = capsys.readouterr().out
    assert "clip_high: 0.28" in printed
    assert "3 epochs x 1 minibatches = 3 optimizer steps" in printed


def test_keys_lists_one_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "checkpoint"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == [
        "key",
        "checkpoint.every",
        "checkpoint.keep",
        "checkpoint.best",
    ]
    assert [line for line in lines if line != line.rstrip()] == [], "spaces at the end of lines"


def test_a_narrow_terminal_gets_a_block_for_each_key() -> None:
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    subprocess.run([sys.executable, "-m", "rlkl", "keys", "rollout.cpus"], stdout=end, env=environment, check=True)
    os.close(end)
    printed = os.read(terminal, 65536)
    os.close(terminal)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", printed.decode()).split("\r\n")
    assert plain[0].startswith("rollout.cpus_per_worker  default 1")
    assert plain[1].strip() == "a whole number >= 1"
    assert all(len(line) <= 80 for line in plain)


def test_keys_name_the_rules_of_a_default_that_differs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "update.kl_coef"]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert "0.0 (grpo), 0.01 (papo), 0.05 (ppo), 0.35 (superhf)" in line
    assert line.endswith("(grpo, papo, ppo, superhf)")


@pytest.mark.parametrize(
    "arguments",
    [
        ["scored.yaml", "--data", "rows.jsonl", "rewards[0].weight=3", "--out", "out.jsonl", "seed=1"],
        ["--data", "rows.jsonl", "scored.yaml", "rewards[0].weight=3", "--out", "out.jsonl"],
        ["--reward", "my.py:length", "--data", "rows.jsonl", "weight=3", "--out=out.jsonl"],
        ["--reward", "my.py:length", "weight=3", "--data", "rows.jsonl", "name=length", "--out=out.jsonl"],
    ],
)
def test_overrides_may_stand_between_options(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.py").write_text("def length(completion):\n    return len(completion)\n")
    Path("rows.jsonl").write_text('{"prompt": "a", "completion": "bc"}\n')
    Path("scored.yaml").write_text("model: {path: m}\ndata: {source: d}\nrewards: [{function: 'my.py:length'}]\n")
    assert main(["score", *arguments]) == 0
    row = json.loads(Path("out.jsonl").read_text())
    assert (row["reward"], row["reward/length"]) == (6.0, 2.0)


@pytest.mark.parametrize(
    "arguments",
    [
        ["score", "quickstart", "--dat", "rows.jsonl", "--outt", "x"],
        ["train", "quickstart", "--resum"],
        ["plan", "quickstart", "steps=3", "--out=x"],
        ["doctor", "steps=3"],
    ],
)
def test_unknown_options_are_still_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_module_runs_as_a_command() -> None:
    answer = subprocess.run([sys.executable, "-m", "rlkl", "train", "nowhere"], capture_output=True, text=True)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith("error: no recipe at nowhere")
