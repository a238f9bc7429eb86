"""``update.correction`` in the rules that have it: loss, gradient, settings, metrics and the warning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from rlkl.batch import Batch, Signal
from rlkl.learner.learner import Learner, LearnerSpec
from rlkl.recipe import Recipe
from rlkl.updates import build_update
from rlkl.updates.settings import GrpoSettings, PapoSettings, PpoSettings
from tests.builders import PROMPT_TOKENS, make_batch, with_frozen, with_policy
from tests.models import tiny_qwen3
from tests.unit.learner.test_learner import examples

SAMPLER_OFF = torch.tensor([[0.5, 0.0, 0.0], [-0.25, 1.5, 0.0]])
"""Log(proximal / sampler) of each response token; the second token of the second row has a ratio of 4.48."""
SETTINGS = {
    "grpo": GrpoSettings,
    "cispo": lambda **x: GrpoSettings(variant="cispo", **x),
    "ppo": lambda **x: PpoSettings(kl_coef=0.0, critic="none", gae_lambda=1.0, **x),
}
WEIGHTS = {
    "token_truncate": SAMPLER_OFF.exp().clamp(max=2.0),
    "token_mask": torch.where(SAMPLER_OFF > 1.4, 0.0, SAMPLER_OFF.exp()),
    "sequence_mask": torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]),
    "none": torch.ones(2, 3),
}


def worked_example() -> Batch:
    batch = make_batch(lengths=[1, 3], rewards=[1.0, 0.0], groups=[0, 0])
    proximal_BT, sampler_BT = torch.zeros(batch.response_BT.shape), torch.zeros(batch.response_BT.shape)
    proximal_BT[:, PROMPT_TOKENS:] = torch.tensor([[-1.1, 0.0, 0.0], [-0.9, -1.2, -1.0]])
    sampler_BT[:, PROMPT_TOKENS:] = proximal_BT[:, PROMPT_TOKENS:] - SAMPLER_OFF
    batch = replace(batch, rollout_logprobs_BT=torch.where(batch.response_BT, sampler_BT, 0.0))
    batch = with_frozen(batch, {Signal.PROXIMAL_LOGPROBS: torch.where(batch.response_BT, proximal_BT, 0.0)})
    return replace(batch, advantages_BT=torch.tensor([[1.0], [-0.5]]) * batch.response_BT)


def loss_and_gradient(settings: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    policy_BT = torch.full(batch.response_BT.shape, -1.0, requires_grad=True)
    loss = build_update(settings).loss(batch, with_policy(batch, policy_BT)).loss
    return loss.detach(), torch.autograd.grad(loss, policy_BT)[0]


@pytest.mark.parametrize("rule", SETTINGS)
@pytest.mark.parametrize("name", WEIGHTS)
def test_each_tokens_gradient_has_its_weight(rule: str, name: str):
    bounds = {"correction_high": 4.0} if name == "token_mask" else {}
    batch = worked_example()
    _, plain_BT = loss_and_gradient(SETTINGS[rule](correction="none"), batch)
    _, found_BT = loss_and_gradient(SETTINGS[rule](correction=name, **bounds), batch)
    weight_BT = torch.ones(batch.response_BT.shape)
    weight_BT[:, PROMPT_TOKENS:] = WEIGHTS[name]
    assert plain_BT[batch.response_BT].abs().min() > 0
    torch.testing.assert_close(found_BT, torch.where(batch.response_BT, plain_BT * weight_BT, 0.0))


@pytest.mark.parametrize("rule", SETTINGS)
def test_a_sampler_with_the_learners_numbers_changes_no_bit(rule: str):
    batch = worked_example()
    batch = replace(batch, rollout_logprobs_BT=batch.signals[Signal.PROXIMAL_LOGPROBS])
    plain = loss_and_gradient(SETTINGS[rule](correction="none"), batch)
    for name in ("token_truncate", "token_mask", "sequence_mask"):
        found = loss_and_gradient(SETTINGS[rule](correction=name), batch)
        assert all(torch.equal(one, other) for one, other in zip(plain, found, strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"correction_high": 3}, "correction_high = 3 with correction = auto: .* token_truncate \\(which auto takes"),
        ({"correction": "none", "correction_low": 0.5}, "correction_low = 0.5 with correction = none"),
        ({"correction": "token_mask", "correction_high": 0.4}, "0.5 is not below correction_high = 0.4"),
        ({"correction": "sequence_mask", "correction_low": 1.5}, "1.5 is not below correction_high = 1.01"),
        ({"correction": "token_truncate", "correction_low": 0.5}, "has no lower bound"),
        ({"correction": "token_mask", "correction_low": 2, "correction_high": 1}, "2 is not below correction_high = 1"),
        ({"correction": "product"}, "token_truncate"),
    ],
)
@pytest.mark.parametrize("section", [GrpoSettings, PpoSettings, PapoSettings])
def test_bounds_without_effect_are_refused(section: Any, settings: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        section.model_validate(settings)


def train(path: Path, dtype: str, **update: Any) -> dict[str, float]:
    learner = {"device": "cpu", "threads": 1, "lr": 1e-4}
    recipe = Recipe.model_validate(
        {"model": {"path": str(path), "dtype": dtype}, "data": {"source": "-"}, "learner": learner, "update": update}
    )
    one = Learner(LearnerSpec(recipe=recipe, model_path=str(path)))
    return one.prepare(examples(0), step=0) | one.step(0)


KEYS = {"correction/weight_mean", "correction/weight_max", "correction/cut_fraction", "rollout/ess"}


@pytest.mark.parametrize(
    "update", [{"rule": "grpo"}, {"rule": "ppo"}, {"rule": "grpo", "terms": [{"term": "entropy"}]}]
)
def test_auto_corrects_in_bfloat16_alone(tmp_path: Path, update: dict[str, Any]):
    """GRPO gets the log-probs of the start from the training pass, PPO from a pass before it."""
    path = tiny_qwen3(tmp_path / "model", tied=True, seed=0)
    assert not KEYS & train(path, "float32", **update).keys()
    found = train(path, "bfloat16", **update)
    assert found.keys() >= KEYS
    assert found["correction/weight_max"] <= 2.0
    named = train(path, "bfloat16", **update, correction="token_truncate")
    assert {key: named[key] for key in KEYS} == {key: found[key] for key in KEYS}
    assert not KEYS & train(path, "bfloat16", **update, correction="none").keys()


@pytest.mark.parametrize("settings", [GrpoSettings, PpoSettings, PapoSettings])
def test_many_cut_tokens_are_warned_about(settings: Any):
    rule = build_update(settings(correction="token_mask"))
    assert rule.alarms([]) == {}
    assert rule.alarms([{"correction/cut_fraction": 0.2}]) == {}
    assert rule.alarms([{"correction/cut_fraction": 0.1}, {}]) == {}
    warning = rule.alarms([{"correction/cut_fraction": 0.0}, {"correction/cut_fraction": 0.35}])["correction"]
    assert warning.startswith("update.correction = token_mask cut the weight of 35% of the tokens, whose ratio")
