"""What must hold for every update rule, whatever its formula. A further rule adds its settings to `RULES`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from rlkl.batch import Batch, Signal, Signals
from rlkl.updates import build_update
from rlkl.updates.settings import GRPO_VARIANTS, GrpoSettings, UpdateSettings
from tests.builders import make_batch, random_logprobs, with_frozen, with_policy

RULES: list[UpdateSettings] = [
    *(GrpoSettings(variant=variant) for variant in GRPO_VARIANTS),
    *(GrpoSettings(variant=variant, kl_coef=0.3) for variant in GRPO_VARIANTS),
    GrpoSettings(kl_coef=0.3, kl_estimator="k2"),
    GrpoSettings(kl_coef=0.3, kl_placement="reward"),
    GrpoSettings(variant="rloo", kl_coef=0.3, kl_placement="reward", mask_truncated=True),
    GrpoSettings(variant="gspo", clip_low=0.1, clip_high=0.2, mask_truncated=True),
]
NO_KL = [settings for settings in RULES if settings.kl_coef == 0]


def name(settings: UpdateSettings) -> str:
    return "-".join(str(value) for value in settings.model_dump(exclude_defaults=True).values()) or "defaults"


each_rule = pytest.mark.parametrize("settings", RULES, ids=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    loss: float
    gradient_BT: Tensor
    metrics: dict[str, float]


def example() -> Batch:
    return make_batch(
        lengths=[3, 1, 0, 6, 2, 5, 4],
        rewards=[1.0, 0.0, 0.25, 2.0, 0.0, 1.0, 0.5],
        groups=[0, 0, 0, 1, 1, 1, 2],
        truncated=[3],
        padding=2,
    )


def prepared(settings: UpdateSettings, batch: Batch) -> Batch:
    """A batch as the learner hands it to `loss`."""
    return build_update(settings).credit(batch).recounted()


def policy_of(batch: Batch) -> Tensor:
    return random_logprobs(batch.response_BT, seed=9)


def evaluate(settings: UpdateSettings, batch: Batch, policy_BT: Tensor) -> Result:
    policy_BT = policy_BT.clone().requires_grad_()
    output = build_update(settings).loss(batch, with_policy(batch, policy_BT))
    (gradient_BT,) = torch.autograd.grad(output.loss, policy_BT)
    values = {**output.terms, **output.metrics}
    return Result(
        loss=output.loss.item(),
        gradient_BT=gradient_BT,
        metrics={key: value.item() for key, value in values.items()},
    )


def assert_same(ours: Result, theirs: Result) -> None:
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-5, abs=1e-6)
    assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-5, abs=1e-6)
    torch.testing.assert_close(ours.gradient_BT, theirs.gradient_BT, rtol=1e-5, atol=1e-7)


@each_rule
@pytest.mark.parametrize(
    "cut",
    [[[0], [1], [2], [3], [4], [5], [6]], [[0, 1, 2], [3, 4, 5, 6]], [[6, 1], [3, 0, 2], [5, 4]]],
    ids=["single rows", "two halves", "mixed groups"],
)
def test_the_cut_into_micro_batches_does_not_matter(settings: UpdateSettings, cut: list[list[int]]) -> None:
    batch = prepared(settings, example())
    policy_BT = policy_of(batch)
    whole = evaluate(settings, batch, policy_BT)
    gradient_BT = torch.zeros_like(policy_BT)
    parts = []
    for rows in cut:
        micro_batch = batch.rows(torch.tensor(rows))
        width = micro_batch.response_BT.shape[1]
        part = evaluate(settings, micro_batch, policy_BT[rows, :width])
        gradient_BT[rows, :width] += part.gradient_BT
        parts.append(part)
    summed = {key: sum((part.metrics[key] for part in parts), start=0.0) for key in whole.metrics}
    assert_same(Result(loss=sum(part.loss for part in parts), gradient_BT=gradient_BT, metrics=summed), whole)
    assert whole.gradient_BT.abs().max() > 0 or whole.metrics["update/clip_fraction_low"] > 0


@each_rule
def test_padding_does_not_matter(settings: UpdateSettings) -> None:
    batch = prepared(settings, example())
    policy_BT = policy_of(batch)
    width = policy_BT.shape[1]
    tight = batch.rows(torch.arange(batch.size))
    assert tight.response_BT.shape[1] < width
    ours = evaluate(settings, tight, policy_BT[:, : tight.response_BT.shape[1]])
    padded_BT = pad(ours.gradient_BT, (0, width - ours.gradient_BT.shape[1]))
    assert_same(replace(ours, gradient_BT=padded_BT), evaluate(settings, batch, policy_BT))


@each_rule
def test_the_order_of_rows_and_the_numbers_of_groups_do_not_matter(settings: UpdateSettings) -> None:
    order = torch.tensor([4, 6, 0, 3, 2, 5, 1])
    renumbered = torch.tensor([40, 7, 19])
    batch = example()
    policy_BT = policy_of(batch)
    whole = evaluate(settings, prepared(settings, batch), policy_BT)
    shuffled = batch.rows(order)
    shuffled = prepared(settings, replace(shuffled, group_B=renumbered[shuffled.group_B]))
    width = shuffled.response_BT.shape[1]
    ours = evaluate(settings, shuffled, policy_BT[order, :width])
    assert_same(ours, replace(whole, gradient_BT=whole.gradient_BT[order, :width]))


@each_rule
def test_nan_outside_the_response_never_leaks(settings: UpdateSettings) -> None:
    batch = example()
    policy_BT = policy_of(batch)
    clean = evaluate(settings, prepared(settings, batch), policy_BT)

    def poisoned(x_BT: Tensor) -> Tensor:
        return torch.where(batch.response_BT, x_BT, float("nan"))

    dirty = with_frozen(batch, {signal: poisoned(batch.signals[signal]) for signal in batch.signals})
    dirty = prepared(settings, replace(dirty, rollout_logprobs_BT=poisoned(batch.rollout_logprobs_BT)))
    ours = evaluate(settings, dirty, poisoned(policy_BT))
    assert_same(ours, clean)
    assert not ours.gradient_BT[~batch.response_BT].any()


@each_rule
def test_extreme_log_probs_keep_loss_and_gradient_finite(settings: UpdateSettings) -> None:
    batch = prepared(settings, example())
    policy_BT = policy_of(batch) * torch.tensor([200.0, 1.0]).repeat(batch.response_BT.shape[1] // 2)
    for sign in (1, -1):
        swapped = with_frozen(batch, {Signal.PROXIMAL_LOGPROBS: policy_BT}) if sign < 0 else batch
        result = evaluate(settings, swapped, policy_BT if sign > 0 else policy_of(batch))
        assert result.gradient_BT.isfinite().all()
        assert all(torch.tensor(value).isfinite() for value in (result.loss, *result.metrics.values()))


@pytest.mark.parametrize("settings", NO_KL, ids=name)
def test_equal_rewards_give_exactly_no_gradient(settings: UpdateSettings) -> None:
    batch = replace(example(), rewards_B=torch.full((7,), 0.1))
    batch = prepared(settings, batch)
    assert not evaluate(settings, batch, policy_of(batch)).gradient_BT.any()


@pytest.mark.parametrize("settings", [s for s in RULES if s.mask_truncated], ids=name)
def test_masked_truncated_rows_give_exactly_no_gradient(settings: UpdateSettings) -> None:
    batch = example()
    gradient_BT = evaluate(settings, prepared(settings, batch), policy_of(batch)).gradient_BT
    assert not gradient_BT[batch.truncated_B].any()
    assert gradient_BT[~batch.truncated_B].any()


@pytest.mark.parametrize("settings", [GrpoSettings(kl_coef=1.0)], ids=name)
def test_k3_in_the_loss_descends_the_kl_from_reference_to_policy(settings: UpdateSettings) -> None:
    """Enumerates a vocabulary of five tokens: one response token, drawn from the policy, zero advantage."""
    logits_V = torch.tensor([0.5, -1.0, 0.0, 1.5, 0.2], requires_grad=True)
    reference_V = torch.tensor([0.1, 0.7, -0.4, 0.3, -1.2]).log_softmax(0)
    policy_V = logits_V.log_softmax(0)
    batch = make_batch(lengths=[1], rewards=[0.0], groups=[0])
    expected = torch.zeros(())
    for token in range(5):
        frozen = {
            Signal.PROXIMAL_LOGPROBS: policy_V[token].detach() * batch.response_BT,
            Signal.REFERENCE_LOGPROBS: reference_V[token] * batch.response_BT,
            Signal.POLICY_LOGPROBS: policy_V[token] * batch.response_BT,
        }
        output = build_update(settings).loss(batch, batch.signals.merged(Signals(frozen)))
        expected = expected + policy_V[token].detach().exp() * output.loss
    (ours,) = torch.autograd.grad(expected, logits_V, retain_graph=True)
    forward = (reference_V.exp() * (reference_V - policy_V)).sum()
    reverse = (policy_V.exp() * (policy_V - reference_V)).sum()
    torch.testing.assert_close(expected, reverse)
    torch.testing.assert_close(ours, torch.autograd.grad(forward, logits_V, retain_graph=True)[0])
    assert (ours - torch.autograd.grad(reverse, logits_V)[0]).abs().max() > 0.05
