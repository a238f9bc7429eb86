"""PPO on one worked example, its limits, and its steered KL coefficient.

Two completions of 2 and 1 tokens with rewards 1 and 3. At the start of the step every token costs 0.5 nats of KL, and
the critic says 0.2, 0.4 and 1.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from rlkl.batch import Batch, LossOutput, Signal, Signals
from rlkl.errors import MissingSignalError
from rlkl.updates.base import HeadInput, ModelShape
from rlkl.updates.grpo.rule import Grpo
from rlkl.updates.ppo.rule import Ppo, ValueHead
from rlkl.updates.settings import GrpoSettings, PpoSettings
from tests.builders import make_batch, with_frozen, with_policy

RATIOS = [1.5, 1.0, 0.5]
VALUES = [0.7, 0.3, 0.5]
PLAIN = PpoSettings(kl_coef=0.1, gae_lambda=0.5, whiten=False)


def spread(batch: Batch, values: list[float]) -> Tensor:
    """``[B, T]`` with the values at the response tokens, in order."""
    return torch.zeros(batch.response_BT.shape).masked_scatter(batch.response_BT, torch.tensor(values))


def worked_example() -> Batch:
    batch = make_batch(lengths=[2, 1], rewards=[1.0, 3.0], groups=[0, 1])
    return with_frozen(
        batch,
        {
            Signal.PROXIMAL_LOGPROBS: spread(batch, [-1.0, -1.0, -1.0]),
            Signal.REFERENCE_LOGPROBS: spread(batch, [-1.5, -1.5, -1.5]),
            Signal.PROXIMAL_HEADS: spread(batch, [0.2, 0.4, 1.0]).unsqueeze(-1),
        },
    )


def run(settings: PpoSettings) -> tuple[LossOutput, list[float], list[float]]:
    """The loss, and its gradients with respect to log-probs and values of the three response tokens."""
    rule = Ppo(settings)
    batch = rule.credit(worked_example())
    policy_BT = (spread(batch, [-1.0] * 3) + spread(batch, RATIOS).log().clamp(min=-9)).requires_grad_()
    heads_BTK = spread(batch, VALUES).unsqueeze(-1).requires_grad_()
    output = rule.loss(batch, with_policy(batch, policy_BT).merged(Signals({Signal.HEADS: heads_BTK})))
    gradients = torch.autograd.grad(output.loss, (policy_BT, heads_BTK), allow_unused=True)
    to_policy, to_values = (
        [] if gradient is None else gradient.reshape(batch.response_BT.shape)[batch.response_BT].tolist()
        for gradient in gradients
    )
    return output, to_policy, to_values


def test_credit_by_hand() -> None:
    # The tokens earn -0.05, 1 - 0.05 and 3 - 0.05. Residuals: -0.05 + 0.4 - 0.2 = 0.15, 0.55 and 1.95.
    batch = Ppo(PLAIN).credit(worked_example())
    assert batch.advantages_BT[batch.response_BT].tolist() == pytest.approx([0.15 + 0.5 * 0.55, 0.55, 1.95])
    assert batch.returns_BT[batch.response_BT].tolist() == pytest.approx([0.625, 0.95, 2.95])
    assert not batch.advantages_BT[~batch.response_BT].any()
    assert not batch.returns_BT[~batch.response_BT].any()


def test_whitening_changes_advantages_and_leaves_returns() -> None:
    plain = Ppo(PLAIN).credit(worked_example())
    batch = Ppo(PLAIN.model_copy(update={"whiten": True})).credit(worked_example())
    # Mean 0.975; squared deviations 0.3025, 0.180625 and 0.950625 over 3.
    std = (1.43375 / 3) ** 0.5
    expected = [-0.55 / std, -0.425 / std, 0.975 / std]
    assert batch.advantages_BT[batch.response_BT].tolist() == pytest.approx(expected)
    assert torch.equal(batch.returns_BT, plain.returns_BT)


def test_loss_by_hand() -> None:
    output, to_policy, to_values = run(PLAIN)
    # Ratio 1.5 is held to 1.2 at 0.425; 1 at 0.55; 0.5 at 1.95 is pessimistic as it is.
    assert output.terms["policy"].item() == pytest.approx(-(0.51 + 0.55 + 0.975) / 3)
    assert to_policy == pytest.approx([0.0, -0.55 / 3, -0.975 / 3])
    # Value 0.7 has passed 0.2 + 0.2 towards its return 0.625, so the loss is that of 0.4; the others are free.
    assert output.terms["value"].item() == pytest.approx(0.1 * (0.0253125 + 0.21125 + 3.00125) / 3)
    assert to_values == pytest.approx([0.0, 0.1 * -0.65 / 3, 0.1 * -2.45 / 3])
    assert output.loss.item() == pytest.approx(sum(term.item() for term in output.terms.values()))
    assert {key: value.item() for key, value in output.metrics.items()} == pytest.approx(
        {"update/clip_fraction_low": 0, "update/clip_fraction_high": 1 / 3, "update/value_clip_fraction": 1 / 3}
    )


def test_values_without_a_clip() -> None:
    output, _, to_values = run(PLAIN.model_copy(update={"value_clip": None, "value_coef": 1.0}))
    assert to_values == pytest.approx([0.075 / 3, -0.65 / 3, -2.45 / 3])
    assert output.metrics["update/value_clip_fraction"] == 0


def test_lambda_one_without_critic_is_reinforce() -> None:
    settings = PpoSettings(critic="none", gae_lambda=1.0, kl_coef=0.1, whiten=False)
    rule = Ppo(settings)
    batch = rule.credit(worked_example())
    policy_BT = batch.signals[Signal.PROXIMAL_LOGPROBS].clone().requires_grad_()
    (ours_BT,) = torch.autograd.grad(rule.loss(batch, with_policy(batch, policy_BT)).loss, policy_BT)
    # -log policy times the rewards still to come: 1 - 0.05 - 0.05, 1 - 0.05, 3 - 0.05.
    plain = -(policy_BT * spread(batch, [0.9, 0.95, 2.95])).sum() / 3
    torch.testing.assert_close(ours_BT, torch.autograd.grad(plain, policy_BT)[0])


def test_zero_advantages_give_the_policy_exactly_no_gradient() -> None:
    batch = worked_example()
    rule = Ppo(PpoSettings())
    policy_BT = spread(batch, [-1.3, -0.7, -2.0]).requires_grad_()
    heads_BTK = spread(batch, VALUES).unsqueeze(-1).requires_grad_()
    output = rule.loss(batch, with_policy(batch, policy_BT).merged(Signals({Signal.HEADS: heads_BTK})))
    to_policy_BT, to_heads_BTK = torch.autograd.grad(output.loss, (policy_BT, heads_BTK))
    assert not to_policy_BT.any()
    assert to_heads_BTK.any()


def test_an_empty_completion_takes_no_part() -> None:
    batch = make_batch(lengths=[2, 0], rewards=[1.0, 50.0], groups=[0, 1])
    credited = Ppo(PpoSettings(critic="none", kl_coef=0.0, gae_lambda=1.0, whiten=False)).credit(batch)
    assert credited.advantages_BT.tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("settings", "needs"),
    [
        (PpoSettings(), {Signal.REFERENCE_LOGPROBS, Signal.HEADS, Signal.PROXIMAL_HEADS}),
        (PpoSettings(kl_coef=0.0), {Signal.HEADS, Signal.PROXIMAL_HEADS}),
        (PpoSettings(critic="none"), {Signal.REFERENCE_LOGPROBS}),
        (PpoSettings(critic="none", kl_coef=0.0), set()),
    ],
)
def test_needs(settings: PpoSettings, needs: set[Signal]) -> None:
    assert Ppo(settings).needs == needs | {Signal.POLICY_LOGPROBS, Signal.PROXIMAL_LOGPROBS}


def test_a_missing_signal_is_named() -> None:
    batch = make_batch(lengths=[1], rewards=[1.0], groups=[0])
    with pytest.raises(MissingSignalError, match="PROXIMAL_HEADS"):
        Ppo(PpoSettings()).credit(batch)


def test_metrics_of_the_batch() -> None:
    rule = Ppo(PLAIN)
    metrics = rule.batch_metrics(rule.credit(worked_example()))
    # Returns 0.625, 0.95, 2.95 and residuals 0.425, 0.55, 1.95.
    returns, residuals = torch.tensor([0.625, 0.95, 2.95]), torch.tensor([0.425, 0.55, 1.95])
    explained = 1 - float(residuals.var() / returns.var())
    assert metrics == pytest.approx(
        {"update/kl_coef": 0.1, "update/trained_sequences": 2, "update/value_explained_variance": explained}
    )


def observed(kl: float, sequences: float = 100.0) -> dict[str, float]:
    return {"kl/policy_to_reference": kl, "update/trained_sequences": sequences}


def test_the_coefficient_is_steered_towards_the_target() -> None:
    rule = Ppo(PpoSettings(kl_coef=0.1, kl_target=6.0, kl_horizon=1000))
    rule.observe(observed(6.0))
    assert rule.kl_coef == pytest.approx(0.1)
    rule.observe(observed(6.6))
    assert rule.kl_coef == pytest.approx(0.1 * 1.01)
    rule.observe(observed(60.0))  # the error is held to 0.2
    assert rule.kl_coef == pytest.approx(0.1 * 1.01 * 1.02)
    rule.observe(observed(0.0, sequences=50.0))
    assert rule.kl_coef == pytest.approx(0.1 * 1.01 * 1.02 * 0.99)


def test_the_steered_coefficient_is_used_and_logged_and_survives_a_restart() -> None:
    settings = PpoSettings(kl_coef=0.1, kl_target=6.0, kl_horizon=100, critic="none", gae_lambda=1.0, whiten=False)
    rule, resumed = Ppo(settings), Ppo(settings)
    rule.observe(observed(60.0))
    resumed.load_state(rule.state())
    credited = resumed.credit(worked_example())
    assert credited.advantages_BT[credited.response_BT].tolist() == pytest.approx([1 - 0.12, 1 - 0.06, 3 - 0.06])
    assert resumed.batch_metrics(credited)["update/kl_coef"] == pytest.approx(0.12)


def test_the_immediate_answer_survives_a_restart_too() -> None:
    settings = PpoSettings(kl_coef=0.1, kl_target=6.0, kl_horizon=100, kl_gain=2.0)
    rule, resumed = Ppo(settings), Ppo(settings)
    rule.observe(observed(60.0))
    resumed.load_state(rule.state())
    assert rule.kl_coef == pytest.approx(0.12 * 1.4)
    rule.observe(observed(6.0))
    resumed.observe(observed(6.0))
    assert resumed.kl_coef == rule.kl_coef == pytest.approx(0.12)


def test_a_fixed_coefficient_stays() -> None:
    rule = Ppo(PpoSettings(kl_coef=0.1))
    rule.observe(observed(1000.0))
    assert rule.kl_coef == 0.1


def test_a_target_needs_a_coefficient_to_start_from() -> None:
    with pytest.raises(ValidationError, match=r"kl_target = 6\.0 with kl_coef = 0"):
        PpoSettings(kl_coef=0.0, kl_target=6.0)


def test_the_value_head_starts_at_zero_and_learns() -> None:
    head = Ppo(PpoSettings()).build_heads(ModelShape(path="unused", hidden_size=4, layers=1, seed=0))
    assert isinstance(head, ValueHead)
    assert head.reads is HeadInput.POLICY_HIDDEN
    values_BTK = head(torch.randn(2, 3, 4, dtype=torch.bfloat16))
    assert values_BTK.dtype == torch.float32
    assert values_BTK.shape == (2, 3, 1)
    assert not values_BTK.any()
    (values_BTK - 1).square().sum().backward()
    assert head.output.weight.grad is not None
    assert head.output.weight.grad.any()


def test_rewards_move_only_their_own_sequence() -> None:
    rule = Ppo(PLAIN)
    one = rule.credit(worked_example())
    other = rule.credit(replace(worked_example(), rewards_B=torch.tensor([1.0, 7.0])))
    assert torch.equal(one.advantages_BT[0], other.advantages_BT[0])
    assert not torch.equal(one.advantages_BT[1], other.advantages_BT[1])


def test_a_tokens_own_reward_is_earned_at_that_token() -> None:
    # Of the first sequence's reward of 1 the first token earns 0.75 itself; the last one is left with 0.25.
    example = worked_example()
    batch = Ppo(PLAIN).credit(replace(example, token_rewards_BT=spread(example, [0.75, 0.0, 0.0])))
    # 0.7 + 0.4 - 0.2 = 0.9; 0.2 - 0.4 = -0.2.
    assert batch.advantages_BT[batch.response_BT].tolist() == pytest.approx([0.9 - 0.5 * 0.2, -0.2, 1.95])
    at_the_end = Ppo(PLAIN).credit(replace(example, token_rewards_BT=spread(example, [0.0, 0.5, 3.0])))
    assert torch.allclose(at_the_end.advantages_BT, Ppo(PLAIN).credit(example).advantages_BT)


def test_other_rules_see_the_sum() -> None:
    example = make_batch(lengths=[2, 2], rewards=[1.0, 3.0], groups=[0, 0])
    given = replace(example, token_rewards_BT=spread(example, [0.75, 0.0, 0.0, 3.0]))
    rule = Grpo(GrpoSettings())
    assert torch.equal(rule.credit(given).advantages_BT, rule.credit(example).advantages_BT)
