"""Vision-language models work in vLLM, also on a plain CPU beside a torchvision that was built for CUDA."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.runs import DEADLINE_S, REPOSITORY
from tests.models import tiny_qwen2_5_vl

SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


def test_an_image_is_seen_by_vllm_as_by_transformers(tmp_path: Path):
    """Sampled after one image, the log-probs are those of transformers after that image, and after no other."""
    answers = tmp_path / "answers.json"
    folder = tiny_qwen2_5_vl(tmp_path / "model", seed=0)
    child = subprocess.run(
        [sys.executable, "-m", "tests.integration.ask_about_images", str(folder), str(answers)],
        cwd=REPOSITORY,
        env={**os.environ, **SETTINGS},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert child.returncode == 0, child.stderr
    report = json.loads(answers.read_text())

    assert report["sampled"].keys() == {"red", "gradient", "none"}
    for name, answer in report["sampled"].items():
        assert len(answer["token_ids"]) == 4
        for given, logprobs in report["scores"][name].items():
            if given == name:
                assert answer["logprobs"] == pytest.approx(logprobs, abs=1e-4)
            else:
                assert answer["logprobs"] != pytest.approx(logprobs, abs=0.1)
