"""A step of the learner on the GPU against the same step on the CPU in float32."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gpu.learners import build, distance, train, write_model

CASES: dict[str, dict[str, Any]] = {
    "grpo": {"update": {"rule": "grpo", "kl_coef": 0.0}},
    "grpo with a reference": {"update": {"rule": "grpo", "kl_coef": 0.1}},
    "entropy term": {"update": {"rule": "grpo", "terms": [{"term": "entropy", "coef": 0.01}]}},
    "ppo": {"update": {"rule": "ppo"}},
    "gradient checkpointing": {"model": {"gradient_checkpointing": True}},
    "two minibatches": {"learner": {"minibatches": 2}},
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("name", CASES)
def test_float32_equals_the_cpu(path: str, name: str):
    (ours, gradient), (wanted, wanted_gradient) = (
        train(build(path, device, "float32", **CASES[name])) for device in ("cuda", "cpu")
    )
    assert distance(gradient, wanted_gradient) < 1e-3
    assert ours["optim/grad_norm"] == pytest.approx(wanted["optim/grad_norm"], rel=1e-3)
    assert ours["loss/total"] == pytest.approx(wanted["loss/total"], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_rounds_no_more_than_on_the_cpu(path: str, name: str):
    _, exact = train(build(path, "cpu", "float32", **CASES[name]))
    metrics, gradient = train(build(path, "cuda", "bfloat16", **CASES[name]))
    _, on_cpu = train(build(path, "cpu", "bfloat16", **CASES[name]))
    assert 0 < distance(gradient, exact) < 1.5 * distance(on_cpu, exact)
    assert metrics["optim/skipped"] == 0.0
