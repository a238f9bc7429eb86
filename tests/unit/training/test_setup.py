"""Runs that are refused before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from rlkl.cli import main
from rlkl.errors import EnvironmentProblem, InputError
from rlkl.recipe.io import dump_recipe, load_recipe
from rlkl.training import setup
from rlkl.training.setup import train
from tests.integration.runs import make_recipe
from tests.models import tiny_qwen2_5_vl, tiny_qwen3


def test_a_frozen_model_that_cannot_be_used_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    policy = tiny_qwen3(tmp_path / "policy", tied=False, seed=0)
    other = tiny_qwen3(tmp_path / "other", tied=False, seed=1)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] + 1}))
    update = {"rule": "grpo", "terms": [{"term": "kl", "to": "teacher"}]}
    for path, message in (
        (tmp_path / "absent", r"models\.teacher\.path = .*absent"),
        (other, r"models\.teacher\.path = .*a KL needs one vocabulary"),
    ):
        recipe = make_recipe(tmp_path / "run", policy, update=update, models={"teacher": {"path": str(path)}})
        with pytest.raises(InputError, match=message):
            train(recipe)
    assert not (tmp_path / "run").exists()


def test_too_many_workers_are_refused_before_the_run_folder_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    model = tiny_qwen3(tmp_path / "model", tied=True, seed=0)
    words = ["quickstart", f"model.path={model}", "rollout.engine=hf", "rollout.workers=1000", "run.dir=run"]
    with pytest.raises(EnvironmentProblem, match=r"rollout.workers = 1000: this run starts 1001 actors"):
        train(load_recipe(*words))
    assert main(["train", *words]) == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"update": {"rule": "ppo", "critic": "model"}}, r"update\.critic = 'model' .* token ids only.*critic = head"),
        ({"learner": {"device": "cuda"}}, r"learner\.device = 'cuda', but the learner sees no CUDA device"),
    ],
    ids=["a critic of its own for pictures", "cuda without a GPU"],
)
def test_a_run_that_cannot_learn_is_refused_before_anything_starts(
    sections: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    recipe = make_recipe(tmp_path / "run", tiny_qwen2_5_vl(tmp_path / "model", seed=0), **sections)

    with pytest.raises(InputError, match=message):
        train(recipe)

    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"sampler": "pass_rate"}}, r"data\.sampler = pass_rate draws by pass rates, and the recipe has none"),
        (
            {"checkpoint": {"best": "reward/mean"}},
            r"checkpoint\.best = reward/mean is a reward, and the recipe has none",
        ),
        ({"eval": {"data": {"source": "task:arithmetic/test"}}}, r"eval scores with the recipe's rewards, and the"),
        ({"update": {"filter": {"keep": "top_k", "value": 1}}}, r"no reward: nothing to learn from"),
        ({"update": {"placement": "reward", "reward_coef": 1.0}}, r"no reward: nothing to learn from"),
    ],
    ids=["sampler", "best", "eval", "filter", "coef"],
)
def test_a_run_without_rewards_is_refused_where_it_uses_them(
    sections: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    model = tiny_qwen3(tmp_path / "model", tied=True, seed=0)
    more = {"rewards": [], "models": {"teacher": {"path": str(model)}}}
    sections = more | sections | {"update": {"rule": "distill"} | sections.get("update", {})}
    if "data" in sections:
        sections["data"] = {"source": "task:arithmetic"} | sections["data"]

    with pytest.raises(InputError, match=message):
        train(make_recipe(tmp_path / "run", model, **sections))


@pytest.mark.parametrize("path", ["/no/such/folder", "nobody/nothing"])
def test_a_model_that_is_not_there_ends_with_exit_code_2_and_its_key(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["train", "quickstart", f"model.path={path}", "run.dir=run"]) == 2
    assert f"error: model.path = '{path}': there is no such folder" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_rows_anywhere_that_lack_a_column_of_a_reward_are_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    rows = [{"prompt": f"{number}+1=", "answer": "5"} for number in range(137)] + [{"prompt": "1+1="}] * 3
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "my.py").write_text("def right(completion, answer):\n    return 1.0\n")
    recipe = make_recipe(
        tmp_path / "run",
        tiny_qwen3(tmp_path / "model", tied=False, seed=0),
        data={"source": "rows.jsonl"},
        rewards=[{"function": "my.py:right"}],
    )
    with pytest.raises(InputError, match=r"'answer' is missing or null in 3 of 140 rows \(first: prompt row-137\)"):
        train(recipe)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("saved", "told"),
    [
        (False, "stopped at once; there is no checkpoint yet, so start the run anew"),
        (True, "stopped at once; what the last checkpoint holds is safe"),
    ],
)
def test_a_run_that_is_stopped_at_once_says_whether_there_is_a_checkpoint(
    saved: bool, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run_dir = tmp_path / "run"

    def stopped(*_: Any) -> None:
        if saved:
            (run_dir / "checkpoints" / "step_000002").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(setup, "RayHands", stopped)
    recipe = make_recipe(run_dir, tiny_qwen3(tmp_path / "model", tied=False, seed=0), rollout={"engine": "hf"})
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == told
