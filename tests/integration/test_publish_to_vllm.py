"""Each publish packs again the weights that vLLM packs for its kernels: experts, a tied head, fused projections."""

import json
from pathlib import Path

import pytest

from tests.integration.runs import run_script
from tests.models import random_model


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("qwen3_moe", {"tie_word_embeddings": True}),  # experts 48 wide: padded to 64 for the kernel
        ("opt", {}),
    ],
)
def test_the_engine_has_the_learners_log_probs_after_each_publish(architecture: str, settings: dict, tmp_path: Path):
    answers = tmp_path / "answers.json"
    folder = random_model(architecture, tmp_path / "model", seed=0, **settings)
    run_script("tests.integration.publish_to_vllm", str(folder), "float32", str(answers))
    report = json.loads(answers.read_text())

    assert list(report) == ["start", "unmoved", "moved", "adapters"]
    for scores in report.values():
        assert scores["engine"] == pytest.approx(scores["learner"], abs=5e-5)
    assert report["unmoved"] == report["start"]
    for moment in ("moved", "adapters"):
        assert report[moment]["learner"] != pytest.approx(report["start"]["learner"], abs=0.05)
