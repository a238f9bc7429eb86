"""One update of many parts: with the average and mean answers, and with pictures, replayed texts and masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlkl.data.packing import minibatches
from rlkl.learner.learner import Learner
from tests.models import tiny_qwen2_5_vl, tiny_qwen3
from tests.pictures import processor_of
from tests.unit.learner.test_learner import build, examples
from tests.unit.learner.test_replay_in_learner import write
from tests.unit.learner.test_seeing_learner import examples as with_pictures

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


SEEING = ("kl_average", "replay", "consistency", "masked_kl_reference")


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision model, the states of its texts, and two steps of all parts from it."""
    folder = tmp_path_factory.mktemp("seeing")
    path = str(tiny_qwen2_5_vl(folder / "model", seed=0))
    write(path, folder / "states")
    learner, pictures = seeing_learner(folder), processor_of(path)
    for step in range(2):
        learner.prepare(with_pictures(pictures, draw=step), step=step)
        learner.step(step)
    learner.save(folder / "saved")
    return folder


def seeing_learner(folder: Path, **learner: Any) -> Learner:
    terms = [
        {"term": "kl", "to": "average", "coef": 0.5, "average_decay": 0.5},
        {"term": "replay", "states": str(folder / "states"), "sequences": 4, "cross_entropy_coef": 0.1},
        {"term": "consistency", "coef": 3.0, "noise_std": 0.3},
        {"term": "masked_kl", "coef": 2.0, "token_ids": [4, 7, 9]},
    ]
    return build(
        str(folder / "model"),
        update={"rule": "grpo", "terms": terms},
        learner={"max_grad_norm": 1e9, "minibatches": 2, "track_reference_kl": False, **learner},
    )


def gradients_of_optimizer_steps(folder: Path, **settings: Any) -> list[tuple[dict[str, Tensor], dict[str, float]]]:
    """Return the gradient and the losses of each minibatch at the saved weights."""
    learner = seeing_learner(folder, **settings)
    learner.restore(folder / "saved")
    learner.prepare(with_pictures(processor_of(folder / "model"), draw=5), step=2)
    assert learner._last is not None
    found = []
    for rows_B in minibatches(learner._last.batch, 2, seed=0, step=2, epoch=0):
        losses = learner.try_rows(rows_B)
        trained = learner._optimization.trained.items()
        found.append(({name: p.grad.clone() for name, p in trained if p.grad is not None}, losses))
    return found


def test_pictures_replayed_texts_average_and_masks_together_in_two_optimizer_steps(seeing: Path):
    whole, small = (gradients_of_optimizer_steps(seeing, micro_batch_tokens=tokens) for tokens in (4096, 40))
    assert len(whole) == 2
    for (slopes, losses), (cut, found) in zip(whole, small, strict=True):
        parts = {key: value for key, value in losses.items() if key.startswith("loss/") and key != "loss/total"}
        assert parts.keys() == {"loss/policy", *(f"loss/{name}" for name in SEEING)}
        assert sum(parts.values()) == pytest.approx(losses["loss/total"], rel=1e-5)
        assert losses["term/replay_violation_rate"] > 0
        assert all(parts[f"loss/{name}"] > 0 for name in ("kl_average", "replay", "masked_kl_reference"))
        for name, slope in slopes.items():
            torch.testing.assert_close(cut[name], slope, rtol=1e-3, atol=1e-4, msg=name)
        for key in parts:
            assert found[key] == pytest.approx(losses[key], rel=1e-3, abs=1e-6), key
    assert any(losses["loss/consistency"] > 0 for _, losses in whole), "one of both has pictures"
