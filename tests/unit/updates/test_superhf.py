"""SuperHF's loss: values by hand, limits, and a policy over six answers that is trained to the end."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from rlkl.batch import Batch, Signal, Signals
from rlkl.data.packing import pack
from rlkl.functional.kl import exact_kl
from rlkl.types import Completion, Prompt, Rollout, RolloutGroup
from rlkl.updates.filters import filter_groups
from rlkl.updates.settings import SuperHfSettings
from rlkl.updates.superhf.rule import SuperHf
from tests.builders import PROMPT_TOKENS, make_batch

COEF = 0.35


def by_hand() -> tuple[Batch, Signals]:
    """A completion of two tokens and an end-of-sequence token, and one of two tokens that was cut off."""
    batch = make_batch(lengths=[3, 2], rewards=[1.0, 1.0], groups=[0, 1], truncated=[1])

    def spread(rows: list[list[float]]) -> Tensor:
        values_BT = torch.zeros(batch.response_BT.shape)
        for row, values in enumerate(rows):
            values_BT[row, PROMPT_TOKENS : PROMPT_TOKENS + len(values)] = torch.tensor(values)
        return values_BT.requires_grad_()

    return batch, Signals(
        {
            Signal.POLICY_LOGPROBS: spread([[-1.0, -2.0, -4.0], [-3.0, -5.0]]),
            Signal.KL_REFERENCE_TO_POLICY: spread([[0.1, 0.2, 0.4], [0.3, 0.7]]),
        }
    )


def twice(batch: Batch, signals: Signals) -> tuple[Batch, Signals]:
    rows = torch.tensor([0, 1, 0, 1])
    return batch.rows(rows).recounted(), signals.rows(rows, batch.response_BT.shape[1])


def test_loss_by_hand() -> None:
    output = SuperHf(SuperHfSettings(kl_coef=COEF)).loss(*by_hand())

    assert output.terms["cross_entropy"].item() == pytest.approx((1 + 2 + 4 + 3 + 5) / 5)
    assert output.terms["kl"].item() == pytest.approx(COEF * (0.7 / 3 + 1.0 / 2) / 2)
    assert output.loss.item() == pytest.approx(3.0 + COEF * (0.7 / 3 + 1.0 / 2) / 2)
    assert output.metrics["kl/exact_reference_to_policy"].item() == pytest.approx(1.7 / 5)


def test_compat_by_hand() -> None:
    """No end-of-sequence token in the cross-entropy; KL without the first token, summed over sequences."""
    output = SuperHf(SuperHfSettings(kl_coef=COEF, compat=True)).loss(*by_hand())

    assert output.terms["cross_entropy"].item() == pytest.approx((1 + 2 + 3 + 5) / 4)
    assert output.terms["kl"].item() == pytest.approx(COEF * ((0.2 + 0.4) / 2 + 0.7))
    assert output.metrics["kl/exact_reference_to_policy"].item() == pytest.approx(1.7 / 5)


@pytest.mark.parametrize(("compat", "factor"), [(False, 1.0), (True, 2.0)])
def test_a_batch_doubled_keeps_the_cross_entropy_and_under_compat_doubles_the_kl(compat: bool, factor: float) -> None:
    rule = SuperHf(SuperHfSettings(kl_coef=COEF, compat=compat))
    once, doubled = rule.loss(*by_hand()), rule.loss(*twice(*by_hand()))

    assert doubled.terms["cross_entropy"].item() == pytest.approx(once.terms["cross_entropy"].item())
    assert doubled.terms["kl"].item() == pytest.approx(factor * once.terms["kl"].item())


def test_without_a_kl_coefficient_no_reference_is_asked_for_and_the_gradient_is_that_of_cross_entropy() -> None:
    batch, signals = by_hand()
    rule = SuperHf(SuperHfSettings(kl_coef=0.0))
    output = rule.loss(batch, Signals({Signal.POLICY_LOGPROBS: signals[Signal.POLICY_LOGPROBS]}))
    (gradient_BT,) = torch.autograd.grad(output.loss, signals[Signal.POLICY_LOGPROBS])

    assert rule.needs == {Signal.POLICY_LOGPROBS}
    assert set(output.terms) == {"cross_entropy"}
    assert torch.equal(gradient_BT, torch.where(batch.response_BT, torch.tensor(-1 / 5), 0.0))


def test_one_sample_a_prompt_without_a_kl_is_self_training() -> None:
    """Every sample is learned, whatever its reward: the gradient is that of their mean likelihood loss."""
    settings = SuperHfSettings(kl_coef=0.0)
    rule, groups = SuperHf(settings), [answered([answer]) for answer in (0, 3, 5, 3)]
    batch = rule.credit(pack(rule.select(filter_groups(groups, settings.filter)), completion_limit=1))
    logits_V = START_V.log().requires_grad_()
    (ours_V,) = torch.autograd.grad(rule.loss(batch, signals_of(logits_V, START_V.log(), batch)).loss, logits_V)
    plain = torch.nn.functional.cross_entropy(logits_V.expand(4, -1), torch.tensor([0, 3, 5, 3]))

    torch.testing.assert_close(ours_V, torch.autograd.grad(plain, logits_V)[0])


def test_a_negative_kl_coefficient_is_refused() -> None:
    with pytest.raises(ValidationError, match="kl_coef"):
        SuperHfSettings(kl_coef=-1.0)


def test_rewards_do_not_enter_the_loss() -> None:
    batch, signals = by_hand()
    rule = SuperHf(SuperHfSettings())
    other = replace(batch, rewards_B=torch.tensor([-7.0, 100.0]))

    assert rule.loss(rule.credit(other), signals).loss == rule.loss(rule.credit(batch), signals).loss


def test_the_exact_kl_may_be_cut_to_the_likeliest_tokens() -> None:
    assert SuperHf(SuperHfSettings(kl_top_k=64)).needs == {
        Signal.POLICY_LOGPROBS,
        Signal("kl_to_policy", "reference", top_k=64),
    }
    assert SuperHf(SuperHfSettings()).kl_top_k is None


def signals_of(logits_V: Tensor, reference_V: Tensor, batch: Batch) -> Signals:
    """One distribution for every response token of a batch whose token ids are answers."""
    policy_V = logits_V.log_softmax(-1)
    kl_BT = exact_kl(reference_V, policy_V).expand(batch.response_BT.shape)
    return Signals({Signal.POLICY_LOGPROBS: policy_V[batch.token_ids_BT], Signal.KL_REFERENCE_TO_POLICY: kl_BT})


@pytest.mark.parametrize("coef", [0.35, 1.0, 1e4])
def test_the_optimum_for_one_context_mixes_the_kept_token_and_the_reference(coef: float) -> None:
    """(onehot + beta p_0) / (1 + beta): loss and KL are convex in the logits, so no gradient means optimum."""
    reference_V = torch.tensor([0.5, 0.3, 0.2])
    optimum_V = (torch.tensor([1.0, 0.0, 0.0]) + coef * reference_V) / (1 + coef)
    if coef == 0.35:
        torch.testing.assert_close(optimum_V, torch.tensor([0.870370, 0.077778, 0.051852]), rtol=0, atol=1e-6)
    batch = replace(make_batch(lengths=[1], rewards=[0.0], groups=[0]), token_ids_BT=torch.zeros(1, 3).long())

    def gradient_at(point_V: Tensor) -> Tensor:
        logits_V = point_V.log().requires_grad_()
        signals = signals_of(logits_V, reference_V.log(), batch)
        loss = SuperHf(SuperHfSettings(kl_coef=coef)).loss(batch, signals).loss
        return torch.autograd.grad(loss, logits_V)[0]

    torch.testing.assert_close(gradient_at(optimum_V), torch.zeros(3), rtol=0, atol=2e-7 * (1 + coef))
    elsewhere_V = torch.tensor([0.2, 0.3, 0.5])
    expected_V = (elsewhere_V - torch.tensor([1.0, 0.0, 0.0])) + coef * (elsewhere_V - reference_V)
    torch.testing.assert_close(gradient_at(elsewhere_V), expected_V, rtol=1e-5, atol=1e-6 * (1 + coef))


REWARDS_V = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
START_V = torch.tensor([0.3, 0.25, 0.2, 0.15, 0.07, 0.03])
SAMPLES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    policy_V: Tensor
    kept_reward: float


def iterate(settings: SuperHfSettings, *, steps: int, prompts: int) -> list[Iteration]:
    """Sample, filter and descend with the rule; the policy is a table over six one-token answers."""
    generator = torch.Generator().manual_seed(0)
    rule, logits_V = SuperHf(settings), START_V.log().requires_grad_()
    history = []
    for _ in range(steps):
        policy_V = logits_V.detach().softmax(-1)
        answers = torch.multinomial(policy_V.expand(prompts, -1), SAMPLES, replacement=True, generator=generator)
        examples = rule.select(filter_groups([answered(row) for row in answers.tolist()], settings.filter))
        batch = rule.credit(pack(examples, completion_limit=1))
        history.append(Iteration(policy_V=policy_V, kept_reward=batch.rewards_B.mean().item()))
        loss = rule.loss(batch, signals_of(logits_V, START_V.log(), batch)).loss
        (gradient_V,) = torch.autograd.grad(loss, logits_V)
        with torch.no_grad():
            logits_V -= 2.0 * gradient_V
    return history


def answered(answers: list[int]) -> RolloutGroup:
    rollouts = [
        Rollout(
            sample_index=index,
            completion=Completion(token_ids=(answer,), logprobs=(-1.0,), finish_reason="length", text=str(answer)),
            reward=REWARDS_V[answer].item(),
            components={},
            weights_version=0,
        )
        for index, answer in enumerate(answers)
    ]
    return RolloutGroup(prompt=Prompt(id="p", text="", token_ids=(0,)), rollouts=tuple(rollouts))


def entropy(policy_V: Tensor) -> float:
    return -(policy_V * policy_V.log()).sum().item()


def test_the_first_kept_reward_is_the_expected_best_of_n() -> None:
    (first,) = iterate(SuperHfSettings(), steps=1, prompts=2000)
    at_most_V = START_V.cumsum(0) ** SAMPLES
    best_of_n_V = at_most_V - torch.cat([torch.zeros(1), at_most_V[:-1]])
    expected = (best_of_n_V * REWARDS_V).sum()
    error = ((best_of_n_V * (REWARDS_V - expected) ** 2).sum() / 2000).sqrt()
    assert abs(first.kept_reward - expected) < 3 * error


def test_without_a_kl_the_policy_collapses_onto_the_best_answer() -> None:
    history = iterate(SuperHfSettings(kl_coef=0.0), steps=60, prompts=64)
    rewards = [(iteration.policy_V * REWARDS_V).sum().item() for iteration in history]
    assert rewards[0] < rewards[10] < rewards[20] < rewards[59]
    assert rewards[59] > 4.8
    assert entropy(history[59].policy_V) < 0.2


def test_the_kl_keeps_a_share_of_the_reference_in_every_answer() -> None:
    """At the fixed point p = (q + beta p_0) / (1 + beta) >= beta / (1 + beta) p_0."""
    history = iterate(SuperHfSettings(kl_coef=COEF), steps=120, prompts=64)
    end_V = history[-1].policy_V
    floor_V = COEF / (1 + COEF) * START_V
    assert (end_V > 0.9 * floor_V).all()
    assert (end_V * REWARDS_V).sum() > 2 * (START_V * REWARDS_V).sum()
    collapsed_V = (torch.eye(6)[5] + COEF * START_V) / (1 + COEF)
    assert entropy(end_V) > 0.9 * entropy(collapsed_V) > 0.8
