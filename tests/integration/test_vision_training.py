"""PAPO on pictures, for real: files in a folder, vLLM and Ray, a learner that sees, resume, sample records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import rlkl
from rlkl.errors import WeightSyncError
from rlkl.recipe import Recipe
from rlkl.recipe.io import dump_recipe
from rlkl.training.result import RunResult
from tests.integration.engines import PROJECTOR
from tests.integration.runs import make_recipe, records, start_cli, untimed, wait_for_steps
from tests.models import IMAGE, tiny_qwen2_5_vl

STEPS = 3


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen2_5_vl(tmp_path_factory.mktemp("models") / "vl", seed=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve questions with pictures of several sizes and forms, one without, and one whose file is missing."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for number in range(12):
        width, height = (56, 56) if number % 2 else (84, 61)
        shown = Image.fromarray(rng.integers(1, 256, (height, width, 3), dtype=np.uint8))
        shown.convert("P" if number == 3 else "RGB").save(folder / f"{number}.png")
        rows.append({"prompt": f"{IMAGE}{number}+1=", "images": [f"{number}.png"]})
    rows[5] = {"prompt": f"{IMAGE}{IMAGE}5+1=", "images": ["5.png", "4.png"]}
    rows.append({"prompt": "no picture: 1+1=", "images": []})
    rows.append({"prompt": f"{IMAGE}2+1=", "images": ["missing.png"]})
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe(run_dir: Path, model_path: Path, source: Path, **sections: Any) -> Recipe:
    values: dict[str, Any] = {
        "steps": STEPS,
        "data": {"source": str(source), "max_prompt_tokens": 48},
        "update": {"rule": "papo"},
        "rollout": {"prompts_per_step": 6, "samples_per_prompt": 4, "max_new_tokens": 6},
        "tracking": {"samples_every": 1},
        "checkpoint": {"every": 1},
    }
    for name, section in sections.items():
        values[name] = {**values[name], **section} if isinstance(values.get(name), dict) else section
    return make_recipe(run_dir, model_path, **values)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory, model_path: Path, data: Path) -> RunResult:
    return rlkl.train(recipe(tmp_path_factory.mktemp("runs") / "papo", model_path, data))


def test_sampler_and_learner_see_alike_and_each_publish_is_proven(whole_run: RunResult):
    lines = records(whole_run.run_dir)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["weights/verified"] == 1 for line in lines)
    assert max(line["rollout/mismatch_max"] for line in lines) < 1e-3
    assert max(line["weights/probe_max"] for line in lines) < 1e-3
    assert all(line["perception/kl"] > 0 and line["time/corrupted_s"] > 0 for line in lines)


def test_the_policy_is_a_vision_language_model_whose_tower_has_moved(whole_run: RunResult, model_path: Path):
    policy = AutoModelForImageTextToText.from_pretrained(whole_run.run_dir / "policy").state_dict()
    start = AutoModelForImageTextToText.from_pretrained(model_path).state_dict()
    assert policy.keys() == start.keys()
    assert not torch.equal(policy[PROJECTOR], start[PROJECTOR])
    processor = AutoProcessor.from_pretrained(whole_run.run_dir / "policy")
    assert processor.image_processor is not None, "it can be trained further, and served, as it is"


def test_samples_show_both_pictures_and_each_tokens_perception_kl(whole_run: RunResult):
    pairs = 0
    for row in pq.read_table(whole_run.run_dir / "samples" / "step_000003.parquet").to_pylist():
        assert len(row["perception_kl"]) == len(row["completion_ids"])
        if row["images"] is None:
            assert row["corrupted_images"] is None
            assert "no picture" in row["prompt"]
            continue
        for clean, spoiled in zip(row["images"], row["corrupted_images"], strict=True):
            before, after = (np.asarray(Image.open(whole_run.run_dir / path)) for path in (clean, spoiled))
            assert before.shape == after.shape
            black = ~after.any(axis=2)
            assert 0 < black.mean() < 1
            assert np.array_equal(after[~black], before[~black])
            pairs += 1
    assert pairs >= 5 * 4


def test_a_killed_run_goes_on_bit_for_bit(whole_run: RunResult, model_path: Path, data: Path, tmp_path: Path):
    """SIGKILL after the second step; what is resumed is the run that was never killed."""
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe(tmp_path / "killed", model_path, data)))
    process = start_cli("train", str(path))
    wait_for_steps(process, tmp_path / "killed", 2)
    process.kill()
    process.wait()

    result = rlkl.train(rlkl.load_recipe(tmp_path / "killed" / "recipe.yaml"), resume_from=tmp_path / "killed")

    assert result.status == "done"
    assert untimed(result.run_dir) == untimed(whole_run.run_dir)
    policies = [
        AutoModelForImageTextToText.from_pretrained(run.run_dir / "policy").state_dict() for run in (result, whole_run)
    ]
    assert all(torch.equal(policies[0][name], policies[1][name]) for name in policies[0])


def test_recomputed_dapo_with_adapters_on_both_engines(model_path: Path, data: Path, tmp_path: Path):
    """The same draws' figures do not depend on the engine but for rounding: PAPO_D, gradient in both branches, LoRA."""
    update = {"rule": "papo", "variant": "dapo", "kl_coef": 0.0, "recompute": True, "entropy_coef": 0.03}
    for engine in ("vllm", "hf"):
        sections: dict[str, Any] = {
            "model": {"lora": {"rank": 4}},
            "data": {"max_pixels": 56 * 56},
            "update": update,
            "rollout": {"engine": engine, "max_rounds": 2},
        }
        result = rlkl.train(recipe(tmp_path / engine, model_path, data, tracking={"wandb": "off"}, **sections))
        lines = records(result.run_dir)
        assert all(line["weights/verified"] == 1 for line in lines)
        assert max(line["rollout/mismatch_max"] for line in lines) < 1e-3
        assert all("loss/corrupted_entropy" in line and line["optim/grad_norm"] > 0 for line in lines)


def test_a_lost_projector_stops_the_run_and_is_named(model_path: Path, data: Path, tmp_path: Path):
    engine = {"engine": "tests.integration.engines:LosesTheProjector"}
    with pytest.raises(WeightSyncError, match=r"no tensor of version 0 reached.*merger\.mlp\.2\.weight"):
        rlkl.train(recipe(tmp_path / "lost", model_path, data, rollout=engine))


def test_a_stale_projector_stops_the_run(model_path: Path, data: Path, tmp_path: Path):
    """A CPU engine packs this matrix, so it cannot be read back and named; the log-probs of the probes tell."""
    engine = {"engine": "tests.integration.engines:KeepsTheProjector"}
    with pytest.raises(WeightSyncError, match="disagrees with the learner by"):
        rlkl.train(recipe(tmp_path / "stale", model_path, data, rollout=engine))
