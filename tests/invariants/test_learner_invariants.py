"""What a learner step must not depend on, on a real model."""

from pathlib import Path

import pytest
import torch

from rlkl.learner.learner import Learner
from tests.models import tiny_qwen3
from tests.unit.learner.test_learner import build, examples, weights


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_qwen3(tmp_path_factory.mktemp("model") / "untied", tied=False, seed=0))


def gradient(learner: Learner, order: list[int]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Gradient and record of one step (learning rate 0) over the examples in some order."""
    learner.prepare([examples()[index] for index in order], step=0)
    record = learner.step(0)
    parameters = learner.policy.named_parameters()
    return {name: p.grad.clone() for name, p in parameters if p.grad is not None}, record


UPDATES = [{"variant": variant, "kl_coef": 0.1} for variant in ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo")]


@pytest.mark.parametrize("update", UPDATES, ids=lambda update: update["variant"])
@pytest.mark.parametrize(
    "changed",
    [{"micro_batch_tokens": 20}, {"micro_batch_tokens": 1}, {"logits_chunk_tokens": 2}],
    ids=["micro-batches", "one sequence each", "logit chunks"],
)
def test_the_cut_into_passes_and_chunks_does_not_matter(model_path: str, update: dict, changed: dict):
    plain = {"lr": 0.0, "max_grad_norm": 1e6}
    whole, whole_record = gradient(build(model_path, update=update, learner=plain), list(range(12)))
    cut, cut_record = gradient(build(model_path, update=update, learner=plain | changed), list(range(12)))

    for name, tensor in whole.items():
        torch.testing.assert_close(cut[name], tensor, rtol=1e-3, atol=2e-6)
    assert cut_record == pytest.approx(whole_record, rel=1e-4, abs=1e-6)


def test_the_order_of_the_examples_does_not_matter(model_path: str):
    plain = {"lr": 0.0, "max_grad_norm": 1e6}
    one, record = gradient(build(model_path, learner=plain), list(range(12)))
    other, other_record = gradient(build(model_path, learner=plain), [7, 2, 11, 0, 5, 9, 4, 1, 10, 3, 8, 6])

    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=2e-6)
    assert other_record == pytest.approx(record, rel=1e-4, abs=1e-6)


def test_two_learners_of_one_seed_agree_bit_for_bit(model_path: str, tmp_path: Path):
    ends = []
    for _ in range(2):
        learner = build(model_path, model={"lora": {"rank": 2}}, learner={"epochs": 2, "minibatches": 2})
        learner.prepare(examples(), step=0)
        learner.step(0)
        ends.append(weights(learner))

    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
