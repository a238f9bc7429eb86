"""Corrected samples through Ray and vLLM: the tokens before the teacher's stay, and the policy samples on after it."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

import rlkl
from tests.integration.runs import digits, make_recipe, records
from tests.models import tiny_qwen3

LIMIT = 8


def test_vllm_continues_corrected_samples(untied_model: Path, tmp_path: Path):
    teacher = tiny_qwen3(tmp_path / "teacher", tied=False, seed=1)
    recipe = make_recipe(
        tmp_path / "run",
        untied_model,
        steps=2,
        models={"teacher": {"path": str(teacher)}},
        update={"rule": "distill", "corrections": 2},
        rollout={"max_new_tokens": LIMIT, "workers": 2},
        learner={"track_reference_kl": False},
        tracking={"samples_every": 1},
    )
    rlkl.train(recipe)

    for record in records(tmp_path / "run"):
        assert record["rollout/corrected_fraction"] > 0.5
        assert record["rollout/regenerated_token_fraction"] > 0
        assert record["rollout/mismatch_max"] < 1e-4  # the sampler's tokens are read by the learner after the same ones
        assert record["optim/grad_norm"] > 0
    for row in pq.read_table(tmp_path / "run" / "samples" / "step_000001.parquet").to_pylist():
        origins, size = row["provenance"], len(row["completion_ids"])
        assert len(origins) == len(row["logprobs"]) == size <= LIMIT
        assert (row["finish_reason"] == "length") <= (size == LIMIT)
        assert row["reward"] == digits(row["completion"])
        if 1 in origins:
            first = origins.index(1)
            assert origins[:first] == [0] * first
            assert 0 not in origins[first:]
        else:
            assert origins == [0] * size
