"""Sampling while the learner steps, on models with many layers and words, in bfloat16, with very different lengths."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import rlkl
from tests.integration.runs import records, untimed
from tests.realistic.models import ModelChoice, build
from tests.realistic.test_training import completions, recipe_of

CHATS = [[{"role": "user", "content": "badu gefi " * n}] for n in range(1, 7)]
STREAM = {"engine": "vllm", "workers": 2, "schedule": "stream", "max_staleness": 2}


def test_adapters_in_bfloat16_one_step_off_go_on_as_they_were(models: Path, tmp_path: Path):
    """A Gemma with a chat template; adapters travel as such; a resume makes the same third step."""
    model = build(ModelChoice(architecture="gemma", vocabulary=4096, dtype="bfloat16"), models)
    sections: dict[str, dict[str, Any]] = {
        "model": {"dtype": "bfloat16", "lora": {"rank": 8}},
        "rollout": {"engine": "vllm", "workers": 2, "schedule": "one_step_off"},
        "learner": {"lr": 1e-4, "track_reference_kl": True},
    }
    run_dir = tmp_path / "run"
    rlkl.train(recipe_of(run_dir, model, CHATS, **sections))

    whole = untimed(run_dir)
    assert [line["rollout/staleness_max"] for line in whole] == [0, 1, 1]
    assert all(line["weights/verified"] == 1 for line in whole)
    lengths = sorted(map(len, completions(run_dir)))
    assert lengths[-1] > 4 * lengths[0]
    shutil.rmtree(run_dir / "policy")
    shutil.rmtree(run_dir / "checkpoints" / "step_000003")
    rlkl.train(rlkl.load_recipe(run_dir / "recipe.yaml"), resume_from=run_dir)
    assert untimed(run_dir) == whole


@pytest.mark.parametrize(
    ("choice", "sections"),
    [
        (ModelChoice(architecture="qwen3", dtype="bfloat16"), {"model": {"dtype": "bfloat16"}}),
        (
            ModelChoice(architecture="gemma", vocabulary=4096, dtype="bfloat16"),
            {"model": {"dtype": "bfloat16", "lora": {"rank": 8}}, "learner": {"lr": 1e-4}},
        ),
    ],
    ids=["24 layers and 151,936 words", "adapters"],
)
def test_weights_arrive_while_long_completions_are_sampled(
    choice: ModelChoice, sections: dict[str, Any], models: Path, tmp_path: Path
):
    """Each publish is proven among running completions, and the policy is exported."""
    run_dir = tmp_path / "run"
    rlkl.train(recipe_of(run_dir, build(choice, models), CHATS, **sections, rollout=STREAM))

    lines = records(run_dir)
    assert all(line["weights/verified"] == 1 for line in lines)
    assert max(line["rollout/staleness_max"] for line in lines) <= 2
    assert all(line["correction/cut_fraction"] < 0.2 for line in lines)
    tables = [pq.read_table(file).to_pylist() for file in sorted((run_dir / "samples").glob("*.parquet"))]
    rows = [row for table in tables for row in table]
    assert all(len(row["versions"]) == len(row["completion_ids"]) == len(row["logprobs"]) for row in rows)
    assert {row["weights_version"] for row in rows} >= {0}
    assert (run_dir / "policy").is_dir()
