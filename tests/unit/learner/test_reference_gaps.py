"""The KL of an evaluation in the learner: at temperature 1, whatever the training's, and without a trace."""

from __future__ import annotations

import pytest
import torch

from rlkl.types import Probe
from tests.models import tiny_qwen3
from tests.unit.learner.test_learner import build, examples, train, weights


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_qwen3(tmp_path_factory.mktemp("model") / "untied", tied=False, seed=0))


def test_gaps_are_those_of_single_sequences_and_change_nothing(model_path: str):
    learner, other = build(model_path, rollout={"temperature": 0.5}), build(model_path, rollout={"temperature": 0.5})
    assert learner.keeps_reference
    assert learner.reference_gaps(examples(9)) == [0.0] * 12
    train(learner, 2)
    train(other, 2)

    gaps = learner.reference_gaps(examples(9))

    start = build(model_path)
    for example, gap in zip(examples(9), gaps, strict=True):
        completion = example.rollout.completion.token_ids
        probe = Probe(token_ids=example.prompt.token_ids + completion)
        policy, reference = (one.probe([probe])[0][-len(completion) :] for one in (learner, start))
        assert gap == pytest.approx(sum(policy) - sum(reference), abs=1e-4)
    assert max(map(abs, gaps)) > 1e-3
    assert train(learner, 2) == train(other, 2)
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(learner).items())


def test_without_a_reference_there_are_no_gaps(model_path: str):
    assert not build(model_path, learner={"track_reference_kl": False}).keeps_reference
