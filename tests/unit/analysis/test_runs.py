"""Reading run folders and grouping them into arms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlkl.analysis.runs import arms_of, read_run
from rlkl.errors import InputError
from rlkl.recipe.io import dump_recipe, load_recipe


def folder(path: Path, *overrides: str, evaluated: bool = False) -> Path:
    """Write a run folder as training leaves it."""
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text(dump_recipe(load_recipe("quickstart", *overrides)))
    lines = [{"step": step, "reward/mean": step / 10} for step in (1, 2)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if evaluated:
        (path / "eval.jsonl").write_text('{"step": 0, "eval/mean": 0.5}\n')
    return path


def test_reads_the_records(tmp_path: Path) -> None:
    run = read_run(folder(tmp_path / "a", "seed=7", evaluated=True))
    assert (run.seed, run.name, run.is_finished) == (7, "a", False)
    assert [record["reward/mean"] for record in run.metrics] == [0.1, 0.2]
    assert run.evaluations == [{"step": 0, "eval/mean": 0.5}]


def test_a_run_without_evaluations_has_none(tmp_path: Path) -> None:
    assert read_run(folder(tmp_path / "a")).evaluations == []


def test_refuses_another_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"recipe\.yaml"):
        read_run(tmp_path)


def test_arms_are_runs_that_differ_in_their_seeds_only(tmp_path: Path) -> None:
    runs = [
        read_run(folder(tmp_path / "a1", "seed=1", "learner.lr=0.001")),
        read_run(folder(tmp_path / "b1", "seed=1", "learner.lr=0.01", "run.name=other", "tracking.wandb=off")),
        read_run(folder(tmp_path / "a2", "seed=2", "learner.lr=0.001")),
    ]
    arms = arms_of(runs)
    assert [arm.label for arm in arms] == ["learner.lr=0.001", "learner.lr=0.01"]
    assert [[run.name for run in arm.runs] for arm in arms] == [["a1", "a2"], ["b1"]]
    assert arms[1].values == {"learner.lr": 0.01}


def test_a_key_that_one_rule_lacks_tells_arms_apart(tmp_path: Path) -> None:
    runs = [
        read_run(folder(tmp_path / "a")),
        read_run(folder(tmp_path / "b", "update={rule: superhf}")),
    ]
    labels = [arm.label for arm in arms_of(runs)]
    assert "update.rule=grpo" in labels[0]
    assert "update.rule=superhf" in labels[1]
    assert "update.variant" not in labels[1]


def test_a_single_arm_has_the_name_of_its_run(tmp_path: Path) -> None:
    assert [arm.label for arm in arms_of([read_run(folder(tmp_path / "a"))])] == ["quickstart"]
