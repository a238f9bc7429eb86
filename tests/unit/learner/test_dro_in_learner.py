"""Weighted groups in the real learner: resumed bit for bit, and the same gradient for any micro-batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models import tiny_qwen3
from tests.unit.learner.test_learner import build, examples, weights


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_qwen3(tmp_path_factory.mktemp("model"), tied=False, seed=0))


def update(rule: str, **keys: Any) -> dict[str, Any]:
    return {"rule": rule, "dro": {"temperature": 0.2}, **keys}


@pytest.mark.parametrize("rule", ["grpo", "ppo"])
def test_a_restored_learner_goes_on_bit_for_bit_with_its_normaliser(model_path: str, tmp_path: Path, rule: str) -> None:
    whole = build(model_path, update=update(rule))
    for step in range(2):
        whole.prepare(examples(step), step=step)
        whole.step(step)
    whole.save(tmp_path)
    wanted = whole.prepare(examples(7), step=2) | whole.step(2)

    resumed = build(model_path, update=update(rule))
    resumed.restore(tmp_path)
    assert resumed.prepare(examples(7), step=2) | resumed.step(2) == wanted
    assert all(torch.equal(weights(resumed)[name], tensor) for name, tensor in weights(whole).items())

    forgetful = build(model_path, update=update(rule)).prepare(examples(7), step=2)
    assert forgetful["dro/soft_worst_reward"] != wanted["dro/soft_worst_reward"]


def test_the_gradient_is_another_one_and_does_not_depend_on_the_cut(model_path: str) -> None:
    norms = {}
    for tokens in (8192, 20, 1):
        learner = build(model_path, update=update("grpo"), learner={"micro_batch_tokens": tokens})
        norms[tokens] = (learner.prepare(examples(), step=0) | learner.step(0))["optim/grad_norm"]
    plain = build(model_path, update={"rule": "grpo"})
    assert norms[20] == pytest.approx(norms[8192], rel=1e-4)
    assert norms[1] == pytest.approx(norms[8192], rel=1e-4)
    unweighted = (plain.prepare(examples(), step=0) | plain.step(0))["optim/grad_norm"]
    assert norms[8192] != pytest.approx(unweighted, rel=1e-2)
