"""The recipe `reasoning_gym_grpo` runs with questions and verifiers of the package, and a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from reasoning_gym import get_score_answer_fn

import rlkl
from rlkl.recipe.io import load_recipe
from tests.integration.runs import REPOSITORY, records

TINY = (
    "model.dtype=float32",
    "model.gradient_checkpointing=false",
    "data.as_chat=false",  # the tiny model's tokenizer has no chat template
    "data.system_prompt=null",
    "rewards[0].settings={extract: whole}",
    "rollout.engine=hf",
    "rollout.workers=1",
    "rollout.prompts_per_step=8",
    "rollout.samples_per_prompt=4",
    "rollout.max_new_tokens=6",
    "learner.lr=1e-3",
    "steps=2",
    "tracking.samples_every=1",
    "checkpoint.every=2",
)


def test_the_recipe_trains_on_questions_and_scores_of_the_package(untied_model: Path, tmp_path: Path):
    data = tmp_path / "data.jsonl"
    script = [sys.executable, REPOSITORY / "recipes" / "reasoning_gym_data.py", data, "--rows", "30"]
    subprocess.run([*script, "--tasks", "letter_counting,base_conversion,simple_equations"], check=True)
    recipe = load_recipe(
        "reasoning_gym_grpo", f"run.dir={tmp_path / 'run'}", f"data.source={data}", f"model.path={untied_model}", *TINY
    )

    result = rlkl.train(recipe)

    assert result.status == "done"
    lines = records(result.run_dir)
    assert [line["step"] for line in lines] == [1, 2]
    entries = {row["prompt"]: json.loads(row["entry"]) for row in map(json.loads, data.read_text().splitlines())}
    seen = []
    for line in lines:
        step = line["step"]
        rows = pq.read_table(result.run_dir / "samples" / f"step_{step:06d}.parquet").to_pylist()
        assert len(rows) == 32
        for row in rows:
            entry, answer = entries[row["prompt"]], row["completion"].strip()
            verify: Any = get_score_answer_fn(entry["metadata"]["source_dataset"])
            assert row["reward"] == pytest.approx(verify(answer=answer, entry=entry) if answer else 0.0)
        seen += [row["reward"] for row in rows]
        assert line["reward/mean"] == pytest.approx(sum(row["reward"] for row in rows) / 32)
        assert line["reward/failed"] == 0
    assert len(set(seen)) > 1, "answers of the tiny model earn partial scores"
    assert max(line["optim/grad_norm"] for line in lines) > 0
