"""A real run leaves a model card, and its policy can be published."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import ModelCard

from rlkl.cli import main
from rlkl.tracking.console.view import number
from rlkl.training.result import RunResult
from tests.integration.runs import records


def test_a_run_leaves_a_card_with_its_numbers_and_its_software(whole_run: RunResult):
    card = (whole_run.run_dir / "policy" / "README.md").read_text()
    ends = [number(record["reward/mean"]) for record in (records(whole_run.run_dir)[0], records(whole_run.run_dir)[-1])]
    assert f"| reward (weighted sum) | {ends[0]} | {ends[1]} |" in card
    assert str(whole_run.run_dir) not in card
    assert "/untied" not in card, "the path of the base model"
    versions = json.loads((whole_run.run_dir / "versions.json").read_text())
    assert f"torch {versions['torch']}" in card
    assert ModelCard(card).data.to_dict()["tags"] == ["rlkl", "rl", "grpo"]


def test_everything_that_the_policy_needs_would_be_uploaded(whole_run: RunResult, capsys: pytest.CaptureFixture[str]):
    assert main(["push", str(whole_run.run_dir), "me/digits", "--dry-run"]) == 0
    listed = capsys.readouterr().out.partition("would upload:\n")[2]
    names = {line.split()[0] for line in listed.splitlines()}
    assert names == {file.name for file in (whole_run.run_dir / "policy").iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "reward.png", "frontier.png"} <= names
