"""The one-file example learns."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from statistics import fmean

EXAMPLE = Path(__file__).parents[3] / "examples" / "minimal_grpo.py"


def test_it_improves_the_arithmetic_model():
    spec = importlib.util.spec_from_file_location("minimal_grpo", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)

    rewards = list(example.train(10))

    assert fmean(rewards[-3:]) > fmean(rewards[:3]) + 0.1
