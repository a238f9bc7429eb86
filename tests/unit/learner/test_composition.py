"""One update of many parts: GRPO with weighted groups, a KL to the average, and the KL of the mean answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlkl.learner.learner import Learner
from tests.models import tiny_qwen3
from tests.unit.learner.test_learner import build, examples

CLOSE, ANSWERS = "kl_average", "marginal_kl"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_qwen3(tmp_path_factory.mktemp("model"), tied=True, seed=0))


@pytest.fixture(scope="module")
def saved(path: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps with all parts, so that the average is not the policy and the mean answer is known."""
    folder = tmp_path_factory.mktemp("saved")
    learner = composed(path, close=0.5, answers=2.0)
    for step in range(2):
        learner.prepare(examples(step), step=step)
        learner.step(step)
    learner.save(folder)
    return folder


def composed(path: str, *, close: float, answers: float, **learner: Any) -> Learner:
    """Build a learner whose terms have these coefficients."""
    terms = [
        {"term": "kl", "to": "average", "coef": close, "average_decay": 0.5},
        {"term": "marginal_kl", "token_ids": list(range(2, 14)), "coef": answers},
    ]
    return build(
        path,
        update={"rule": "grpo", "dro": {"temperature": 0.2}, "terms": terms},
        learner={"max_grad_norm": 1e9, "track_reference_kl": False, **learner},
    )


def gradient(path: str, saved: Path, **settings: Any) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the gradient of one batch at the saved weights, and the losses."""
    learner = composed(path, **settings)
    learner.restore(saved)
    found = learner.prepare(examples(5), step=2)
    assert learner._last is not None
    found |= learner.try_rows(torch.arange(learner._last.batch.size))
    return {name: p.grad.clone() for name, p in learner._optimization.trained.items() if p.grad is not None}, found


def test_the_gradient_of_the_sum_is_the_sum_of_the_gradients(path: str, saved: Path):
    rule, _ = gradient(path, saved, close=0.0, answers=0.0)
    both, losses = gradient(path, saved, close=0.5, answers=2.0)
    close, only_close = gradient(path, saved, close=0.5, answers=0.0)
    answers, only_answers = gradient(path, saved, close=0.0, answers=2.0)
    for name, whole in both.items():
        parts = rule[name] + (close[name] - rule[name]) + (answers[name] - rule[name])
        torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-6)
    for single in (close, answers):
        moved = torch.stack([(single[name] - rule[name]).square().sum() for name in rule]).sum().sqrt()
        assert moved > 1e-3, "each term has a gradient of its own"
    twice, _ = gradient(path, saved, close=1.0, answers=2.0)
    for name, whole in twice.items():
        torch.testing.assert_close(whole, both[name] + close[name] - rule[name], rtol=1e-4, atol=1e-6)
    assert only_close[f"loss/{CLOSE}"] == losses[f"loss/{CLOSE}"]
    assert only_answers[f"loss/{ANSWERS}"] == losses[f"loss/{ANSWERS}"]


def test_each_part_has_its_own_curve_and_they_add_up(path: str, saved: Path):
    _, losses = gradient(path, saved, close=0.5, answers=2.0)
    parts = {key: value for key, value in losses.items() if key.startswith("loss/") and key != "loss/total"}
    assert {f"loss/{CLOSE}", f"loss/{ANSWERS}", "loss/policy"} <= parts.keys()
    assert sum(parts.values()) == pytest.approx(losses["loss/total"], rel=1e-5)
    assert losses[f"loss/{CLOSE}"] == pytest.approx(0.5 * losses[f"term/{CLOSE}_nats"], rel=1e-5)
    assert losses[f"term/{CLOSE}_nats"] > 1e-5
    assert losses[f"term/{ANSWERS}_answers"] > 0
    assert losses["dro/groups"] > 0


def test_the_cut_into_micro_batches_changes_nothing(path: str, saved: Path):
    whole, losses = gradient(path, saved, close=0.5, answers=2.0)
    small, found = gradient(path, saved, close=0.5, answers=2.0, micro_batch_tokens=16)
    for name, slope in whole.items():
        torch.testing.assert_close(small[name], slope, rtol=1e-3, atol=1e-5)
    for key in (key for key in losses if key.startswith("loss/")):
        assert found[key] == pytest.approx(losses[key], rel=1e-4, abs=1e-6)
