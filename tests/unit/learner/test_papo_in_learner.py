"""PAPO in the real learner, on a model that sees: what is frozen at the start of a step, and what is computed anew."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlkl.batch import Batch, LossOutput, Signal, Signals
from rlkl.learner.learner import Learner
from rlkl.rollout.engine import EngineSettings
from rlkl.types import Completion, Example, Rollout
from rlkl.updates.papo.rule import Papo
from rlkl.updates.settings import PapoSettings
from tests.golden.seeing import SeeingEngine
from tests.models import tiny_qwen2_5_vl
from tests.unit.learner.test_learner import build

PROMPTS = 3
"""The first is text alone, the others have a picture."""


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_qwen2_5_vl(tmp_path_factory.mktemp("model") / "sees", seed=0))


@pytest.fixture(scope="module")
def examples(model_path: str) -> list[Example]:
    settings = EngineSettings(
        model_path=model_path,
        dtype="float32",
        max_prompt_tokens=16,
        max_new_tokens=4,
        temperature=1.0,
        stop_token_ids=(1,),
        memory_fraction=0.1,
        kv_cache_gib=1,
    )
    engine = SeeingEngine(settings)
    found = []
    for group in range(PROMPTS):
        prompt = engine.prompt(0, group)
        for sample, token_ids in enumerate(((5, 6, 7), (8, 1))):
            completion = Completion(token_ids=token_ids, logprobs=(-4.0,) * len(token_ids), finish_reason="stop")
            rollout = Rollout(
                sample_index=sample, completion=completion, reward=float(sample), components={}, weights_version=0
            )
            found.append(Example(prompt=prompt, rollout=rollout, group=group))
    return found


class Watched(Papo):
    """Keeps what its loss was given."""

    def __init__(self, settings: PapoSettings) -> None:
        super().__init__(settings)
        self.clean: list[Tensor] = []
        self.corrupted: list[Tensor] = []

    def loss(self, batch: Batch, signals: Signals) -> LossOutput:
        self.clean.append(signals[Signal.POLICY_LOGPROBS])
        moment = "live" if self.settings.recompute else "step_start"
        self.corrupted.append(signals[replace(Signal.CORRUPTED_LOGPROBS, moment=moment)])
        return super().loss(batch, signals)


def watched(model_path: str, examples: list[Example], **update: object) -> tuple[Watched, dict[str, float]]:
    """A step of two optimizer steps over the same sequences, each in one micro-batch."""
    learner = build(model_path, update={"rule": "papo", **update}, learner={"epochs": 2})
    settings = learner._recipe.update
    assert isinstance(settings, PapoSettings)
    learner._update = rule = Watched(settings)
    return rule, learner.prepare(examples, step=0) | learner.step(0)


def test_corrupted_log_probs_are_of_the_weights_at_the_start_of_the_step(
    model_path: str, examples: list[Example]
) -> None:
    rule, _ = watched(model_path, examples)
    assert not torch.equal(rule.clean[0], rule.clean[1])
    assert torch.equal(rule.corrupted[0], rule.corrupted[1])
    assert not rule.corrupted[0].requires_grad
    seen_B = rule.corrupted[0].any(dim=1)
    assert seen_B.sum() == 2 * (PROMPTS - 1)
    assert (rule.clean[0] != rule.corrupted[0])[seen_B].any(dim=1).all()


def test_recomputed_ones_are_of_the_weights_as_they_are_with_gradient(model_path: str, examples: list[Example]) -> None:
    frozen, _ = watched(model_path, examples)
    rule, _ = watched(model_path, examples, recompute=True)
    assert not torch.equal(rule.corrupted[0], rule.corrupted[1])
    assert rule.corrupted[0].requires_grad
    torch.testing.assert_close(rule.corrupted[0].detach(), frozen.corrupted[0], atol=1e-5, rtol=1e-5)


def test_pictures_left_whole_have_no_perception_kl(model_path: str, examples: list[Example]) -> None:
    _, corrupted = watched(model_path, examples)
    rule, whole = watched(model_path, examples, corruption={"fraction": 0.0}, recompute=True)
    assert corrupted["perception/kl"] > 1e-4
    assert whole["perception/kl"] < 1e-9
    seen_BT = rule.corrupted[1] != 0
    torch.testing.assert_close(rule.clean[1][seen_BT], rule.corrupted[1][seen_BT], atol=1e-5, rtol=1e-5)


def gradient(learner: Learner, examples: list[Example]) -> Tensor:
    learner.prepare(examples, step=0)
    learner.step(0)
    return torch.cat([p.grad.flatten() for p in learner.policy.parameters() if p.grad is not None])


@pytest.mark.parametrize(
    "update",
    [{"perception_coef": 0.0}, {"entropy_coef": 0.1}, {"corrupted_entropy_coef": 0.1, "recompute": True}],
    ids=["gamma", "eta1", "eta2"],
)
def test_each_term_is_reached_by_the_backward_pass(model_path: str, examples: list[Example], update: dict) -> None:
    base = {"rule": "papo", "perception_coef": 0.1, "recompute": "recompute" in update}
    plain = {"lr": 0.0, "max_grad_norm": 1e6}
    without, with_term = (
        gradient(build(model_path, update=base | changed, learner=dict(plain)), examples) for changed in ({}, update)
    )
    assert (with_term - without).norm() > 1e-3 * without.norm()
