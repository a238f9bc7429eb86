"""KL estimators and exact forms: values by hand, expectations by enumerating a vocabulary of four tokens."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rlkl.functional.kl import (
    AdaptiveKl,
    cauchy_schwarz,
    exact_kl,
    free_nats,
    free_nats_of_sequence,
    kl_policy_to_reference_k1,
    kl_policy_to_reference_k1_descending_k2,
    kl_policy_to_reference_k2,
    kl_policy_to_reference_k3,
    kl_policy_to_reference_k3_descending_k2,
    straight_through,
    top_k_and_tail,
)

POLICY_LOGITS = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64)
REFERENCE_LOGPROBS_V = torch.tensor([-0.5, 0.4, 0.2, 1.1], dtype=torch.float64).log_softmax(0)
Estimator = Callable[[Tensor, Tensor], Tensor]


def kl_policy_to_reference(logits_V: Tensor) -> Tensor:
    policy_V = logits_V.log_softmax(0)
    return (policy_V.exp() * (policy_V - REFERENCE_LOGPROBS_V)).sum()


def kl_reference_to_policy(logits_V: Tensor) -> Tensor:
    return (REFERENCE_LOGPROBS_V.exp() * (REFERENCE_LOGPROBS_V - logits_V.log_softmax(0))).sum()


def gradient(function: Callable[[Tensor], Tensor]) -> Tensor:
    logits_V = POLICY_LOGITS.clone().requires_grad_()
    return torch.autograd.grad(function(logits_V), logits_V)[0]


def expected(estimator: Estimator) -> Callable[[Tensor], Tensor]:
    """The mean over tokens drawn from the policy, the draw itself not differentiated: what a loss back-propagates."""

    def mean(logits_V: Tensor) -> Tensor:
        policy_V = logits_V.log_softmax(0)
        return (policy_V.detach().exp() * estimator(policy_V, REFERENCE_LOGPROBS_V)).sum()

    return mean


def rewarded(estimator: Estimator) -> Callable[[Tensor], Tensor]:
    """REINFORCE with the estimator as a cost: the value is frozen, the draw is differentiated."""

    def mean(logits_V: Tensor) -> Tensor:
        policy_V = logits_V.log_softmax(0)
        cost_V = estimator(policy_V, REFERENCE_LOGPROBS_V).detach()
        return (policy_V.detach().exp() * cost_V * policy_V).sum()

    return mean


def test_values_by_hand() -> None:
    policy_T = torch.tensor([-1.0, -1.0])
    reference_T = torch.tensor([-1.0 + math.log(2.0), -1.0 - math.log(2.0)])  # r = 2 and r = 1/2
    ln2 = math.log(2.0)
    assert kl_policy_to_reference_k1(policy_T, reference_T).tolist() == pytest.approx([-ln2, ln2])
    assert kl_policy_to_reference_k2(policy_T, reference_T).tolist() == pytest.approx([ln2**2 / 2] * 2)
    assert kl_policy_to_reference_k3(policy_T, reference_T).tolist() == pytest.approx([1 - ln2, -0.5 + ln2])


def test_k3_keeps_its_digits_near_zero() -> None:
    # r - 1 - log r = x^2 / 2 + x^3 / 6 for small x = log r; exp(x) - 1 - x in float32 is off by half of that here.
    x = 2.0**-12
    value = kl_policy_to_reference_k3(torch.tensor([-x]), torch.tensor([0.0])).item()
    assert value == pytest.approx(x**2 / 2 + x**3 / 6, rel=1e-3)


def test_k3_stays_finite() -> None:
    policy_T = torch.tensor([-300.0, -0.1], requires_grad=True)
    k3_T = kl_policy_to_reference_k3(policy_T, torch.tensor([-0.1, -300.0]))
    k3_T.sum().backward()
    assert k3_T.isfinite().all()
    assert policy_T.grad is not None
    assert policy_T.grad.isfinite().all()


@pytest.mark.parametrize("estimator", [kl_policy_to_reference_k1, kl_policy_to_reference_k3])
def test_k1_and_k3_estimate_the_kl_from_policy_to_reference(estimator: Estimator) -> None:
    torch.testing.assert_close(expected(estimator)(POLICY_LOGITS), kl_policy_to_reference(POLICY_LOGITS))


def test_back_propagated_k1_has_no_gradient() -> None:
    torch.testing.assert_close(gradient(expected(kl_policy_to_reference_k1)), torch.zeros(4, dtype=torch.float64))


def test_back_propagated_k2_has_the_gradient_of_the_kl_from_policy_to_reference() -> None:
    torch.testing.assert_close(gradient(expected(kl_policy_to_reference_k2)), gradient(kl_policy_to_reference))


def test_back_propagated_k3_has_the_gradient_of_the_other_kl() -> None:
    k3 = gradient(expected(kl_policy_to_reference_k3))
    torch.testing.assert_close(k3, gradient(kl_reference_to_policy))
    assert (k3 - gradient(kl_policy_to_reference)).abs().max() > 0.05


def test_k1_as_a_cost_in_the_reward_has_the_gradient_of_the_kl_from_policy_to_reference() -> None:
    torch.testing.assert_close(gradient(rewarded(kl_policy_to_reference_k1)), gradient(kl_policy_to_reference))


def test_k3_as_a_cost_in_the_reward_has_the_difference_of_both_gradients() -> None:
    torch.testing.assert_close(
        gradient(rewarded(kl_policy_to_reference_k3)),
        gradient(kl_policy_to_reference) - gradient(kl_reference_to_policy),
    )


STRAIGHT_THROUGH = [
    (kl_policy_to_reference_k1_descending_k2, kl_policy_to_reference_k1),
    (kl_policy_to_reference_k3_descending_k2, kl_policy_to_reference_k3),
]


@pytest.mark.parametrize(("mixed", "value"), STRAIGHT_THROUGH)
def test_straight_through_has_one_estimators_value_and_the_gradient_of_k2(mixed: Estimator, value: Estimator) -> None:
    policy_V = POLICY_LOGITS.log_softmax(0)
    assert torch.equal(mixed(policy_V, REFERENCE_LOGPROBS_V), value(policy_V, REFERENCE_LOGPROBS_V))
    torch.testing.assert_close(expected(mixed)(POLICY_LOGITS), kl_policy_to_reference(POLICY_LOGITS))
    torch.testing.assert_close(gradient(expected(mixed)), gradient(kl_policy_to_reference))


def test_straight_through_keeps_its_value_exact_beside_a_large_gradient_source() -> None:
    source = torch.tensor(1e9, requires_grad=True)
    mixed = straight_through(torch.tensor(0.1), 2 * source)
    mixed.backward()
    assert mixed.item() == torch.tensor(0.1).item()
    assert source.grad == 2.0


def test_exact_kl_by_hand_in_both_directions() -> None:
    reference_V, policy_V = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
    assert exact_kl(reference_V, policy_V).item() == pytest.approx(0.510826, abs=1e-6)
    assert exact_kl(policy_V, reference_V).item() == pytest.approx(0.368064, abs=1e-6)


def test_exact_kl_has_its_closed_form_gradients() -> None:
    """p - r for KL(r || p); p (log p - log r - KL) for KL(p || r), with respect to the logits of p."""
    r = REFERENCE_LOGPROBS_V.exp()
    p = POLICY_LOGITS.softmax(0)
    kl = kl_policy_to_reference(POLICY_LOGITS)
    ours = gradient(lambda logits_V: exact_kl(REFERENCE_LOGPROBS_V, logits_V.log_softmax(0)))
    torch.testing.assert_close(ours, p - r)
    ours = gradient(lambda logits_V: exact_kl(logits_V.log_softmax(0), REFERENCE_LOGPROBS_V))
    torch.testing.assert_close(ours, p * (p.log() - r.log() - kl))


def test_exact_kl_of_equal_distributions_is_exactly_zero_without_gradient() -> None:
    logits_V = torch.randn(1000, generator=torch.Generator().manual_seed(0)).requires_grad_()
    kl = exact_kl(logits_V.detach().log_softmax(0), logits_V.log_softmax(0))
    (gradient_V,) = torch.autograd.grad(kl, logits_V)
    assert kl.item() == 0.0
    assert gradient_V.abs().max() < 1e-8


def test_a_kl_that_rounds_below_zero_reads_zero_and_keeps_its_gradient() -> None:
    reference_V = torch.tensor([0.5, 0.3, 0.2]).log()
    logits_V = torch.tensor([0.50005, 0.29997, 0.19998]).log().requires_grad_()
    policy_V = logits_V.log_softmax(0)
    assert (reference_V.exp() * (reference_V - policy_V)).sum() < 0
    kl = exact_kl(reference_V, policy_V)
    (gradient_V,) = torch.autograd.grad(kl, logits_V)
    assert kl.item() == 0.0
    torch.testing.assert_close(gradient_V, policy_V.detach().exp() - reference_V.exp(), rtol=0, atol=2e-7)


@pytest.mark.parametrize("from_policy", [True, False])
def test_a_token_that_neither_can_produce_adds_nothing(from_policy: bool) -> None:
    masked_V = torch.tensor([0.0, 0.0, float("-inf")])
    logits_V = torch.tensor([1.0, 0.5, 3.0], requires_grad=True)
    policy_V, reference_V = (logits_V + masked_V).log_softmax(0), masked_V.log_softmax(0)
    kl = exact_kl(policy_V, reference_V) if from_policy else exact_kl(reference_V, policy_V)
    whole = exact_kl(logits_V[:2].log_softmax(0), torch.tensor([0.5, 0.5]).log())
    other = exact_kl(torch.tensor([0.5, 0.5]).log(), logits_V[:2].log_softmax(0))
    torch.testing.assert_close(kl, whole if from_policy else other)
    (gradient_V,) = torch.autograd.grad(kl, logits_V)
    assert gradient_V.isfinite().all()
    assert gradient_V[2] == 0


def pair(tokens: int = 40, *, scale: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Log-probs of a policy and of a reference that is near it, float64."""
    generator = torch.Generator().manual_seed(seed)
    reference_V = scale * torch.randn(5, tokens, generator=generator, dtype=torch.float64)
    policy_V = reference_V + torch.randn(5, tokens, generator=generator, dtype=torch.float64)
    return policy_V.log_softmax(-1), reference_V.log_softmax(-1)


def both(policy_V: Tensor, reference_V: Tensor) -> Tensor:
    return torch.stack([exact_kl(reference_V, policy_V), exact_kl(policy_V, reference_V)])


def test_top_k_and_tail_are_distributions() -> None:
    policy_K, reference_K = top_k_and_tail(*pair(), 7)
    assert policy_K.shape == reference_K.shape == (5, 8)
    for logprobs_K in (policy_K, reference_K):
        torch.testing.assert_close(logprobs_K.exp().sum(-1), torch.ones(5, dtype=torch.float64))


def test_the_kl_of_top_k_and_tail_grows_with_k_to_the_whole_one() -> None:
    policy_V, reference_V = pair()
    bounds = torch.stack([both(*top_k_and_tail(policy_V, reference_V, k)) for k in range(1, 41)])
    assert (bounds.diff(dim=0) >= -1e-12).all()
    assert (bounds[0] < 0.9 * bounds[-1]).all()
    assert (bounds <= both(policy_V, reference_V) + 1e-12).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [40, 100])
def test_top_k_of_the_whole_vocabulary_is_the_whole_kl_in_value_and_gradient(k: int, dtype: torch.dtype) -> None:
    policy_V, reference_V = (logprobs_V.to(dtype) for logprobs_V in pair())
    logits_V = policy_V.clone().requires_grad_()

    def of(cut: bool) -> tuple[Tensor, Tensor]:
        sides = (logits_V.log_softmax(-1), reference_V)
        kl = both(*(top_k_and_tail(*sides, k) if cut else sides))
        return kl.detach(), torch.autograd.grad(kl.sum(), logits_V)[0]

    torch.testing.assert_close(of(cut=True), of(cut=False))


def test_what_top_k_misses_is_the_tails_share_of_the_kl_within_the_tail() -> None:
    policy_V, reference_V = (logprobs_V[0] for logprobs_V in pair())
    order = reference_V.argsort(descending=True)
    policy_V, reference_V = policy_V[order], reference_V[order]
    cut = exact_kl(*reversed(top_k_and_tail(policy_V, reference_V, 6)))
    within = exact_kl(reference_V[6:].log_softmax(0), policy_V[6:].log_softmax(0))
    share = reference_V[6:].exp().sum()
    torch.testing.assert_close(exact_kl(reference_V, policy_V), cut + share * within)
    assert share * within > 0.001


def test_the_tail_sees_what_renormalising_the_likeliest_tokens_does_not() -> None:
    """The policy takes a tenth of the two likeliest tokens' mass to the third: among the two nothing has changed."""
    reference_V = torch.tensor([0.5, 0.4, 0.1], dtype=torch.float64).log()
    policy_V = torch.tensor([0.45, 0.36, 0.19], dtype=torch.float64).log()
    renormalised = exact_kl(reference_V[:2].log_softmax(0), policy_V[:2].log_softmax(0))
    with_tail = both(*top_k_and_tail(policy_V, reference_V, 2))
    assert renormalised.item() == pytest.approx(0.0, abs=1e-15)
    assert (with_tail > 0.02).all()
    torch.testing.assert_close(with_tail, both(policy_V, reference_V))


def test_a_small_tail_keeps_its_digits_in_float32() -> None:
    """One minus the kept mass would be rounding error here: the tails are 1e-9 and 1e-10."""
    reference_V = torch.tensor([0.0, math.log(1e-9)]).log_softmax(0)
    policy_V = torch.tensor([0.0, math.log(1e-10)]).log_softmax(0)
    policy_K, reference_K = top_k_and_tail(policy_V, reference_V, 1)
    assert (reference_K - policy_K)[1].item() == pytest.approx(math.log(10), rel=1e-5)


def test_the_order_of_the_vocabulary_does_not_matter() -> None:
    policy_V, reference_V = pair()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    for k in (5, 40):
        ours = both(*top_k_and_tail(policy_V[:, order], reference_V[:, order], k))
        torch.testing.assert_close(ours, both(*top_k_and_tail(policy_V, reference_V, k)))


def test_free_nats_pull_only_above_the_allowance() -> None:
    kl_B = torch.tensor([0.5, 2.0, 3.5], requires_grad=True)
    above_B = free_nats(kl_B, 2.0)
    above_B.sum().backward()
    assert above_B.tolist() == [0.0, 0.0, 1.5]
    assert kl_B.grad is not None
    assert kl_B.grad.tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("observed", "sequences", "value"),
    [
        (6.0, 64, 0.2),  # on target
        (6.6, 64, 0.2 * (1 + 0.1 * 0.0064)),  # a tenth above it
        (60.0, 64, 0.2 * (1 + 0.2 * 0.0064)),  # far above: the error is clipped to a fifth
        (0.0, 64, 0.2 * (1 - 0.2 * 0.0064)),
        (-1.0, 64, 0.2 * (1 - 0.2 * 0.0064)),  # a k1 estimate may be negative
        (60.0, 10_000, 0.24),
        (0.0, 10**9, 0.16),  # never to zero or below
    ],
)
def test_the_adaptive_coefficient_follows_the_error(observed: float, sequences: int, value: float) -> None:
    controller = AdaptiveKl(value=0.2, target=6.0, horizon=10_000)
    assert controller.updated(observed, sequences).value == pytest.approx(value)
    assert controller.value == 0.2


def test_the_adaptive_coefficient_settles_where_the_kl_meets_its_target() -> None:
    """A plant whose KL is 3 / coefficient: at a target of 6 the coefficient must come to 0.5, from either side."""
    for start in (0.05, 4.0):
        controller = AdaptiveKl(value=start, target=6.0, horizon=1000)
        for _ in range(400):
            controller = controller.updated(3.0 / controller.value, sequences=200)
        assert controller.value == pytest.approx(0.5, rel=1e-6)


def test_the_proportional_part_answers_at_once_and_goes_with_the_error() -> None:
    steady = AdaptiveKl(value=0.2, target=6.0, horizon=10_000, gain=2.0)
    assert steady.coefficient == 0.2
    above = steady.updated(6.6, sequences=64)
    assert above.coefficient == pytest.approx(0.2 * (1 + 0.1 * 0.0064) * 1.2)
    assert above.updated(6.0, sequences=64).coefficient == pytest.approx(above.value)
    assert steady.updated(0.0, sequences=64).coefficient == pytest.approx(0.2 * (1 - 0.2 * 0.0064) * 0.6)


def test_a_gain_steadies_a_plant_that_lags() -> None:
    """A KL that follows the coefficient slowly swings under the integral part alone; the proportional one damps it."""

    def largest_swing(gain: float) -> float:
        controller = AdaptiveKl(value=0.1, target=6.0, horizon=1000, gain=gain)
        kl, late = 12.0, []
        for step in range(600):
            kl += 0.05 * (3.0 / controller.coefficient - kl)
            controller = controller.updated(kl, sequences=400)
            late += [abs(kl - 6.0)] if step > 100 else []
        return max(late)

    assert largest_swing(2.0) < 0.5 * largest_swing(0.0)


def test_free_nats_of_a_sequence_pull_only_above_the_allowance() -> None:
    kl_BT = torch.tensor([[9.0, 0.5, 0.3, 0.2], [9.0, 0.9, 2.0, 9.0], [9.0, 0.25, 0.75, 9.0]], requires_grad=True)
    response_BT = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 0], [0, 1, 1, 0]], dtype=torch.bool)
    above_BT = free_nats_of_sequence(torch.where(response_BT, kl_BT, 0.0), response_BT, 1.0)
    above_BT.sum().backward()
    assert above_BT[1].tolist() == pytest.approx([0.0, 0.4, 1.5, 0.0])
    assert above_BT.sum(dim=1).tolist() == pytest.approx([0.0, 1.9, 0.0])  # exactly one nat is still free
    assert kl_BT.grad is not None
    assert kl_BT.grad.tolist() == [[0.0] * 4, [0.0, 1.0, 1.0, 0.0], [0.0] * 4]


def test_cauchy_schwarz_by_hand() -> None:
    p_V, q_V = (torch.tensor(x, dtype=torch.float64) for x in ([0.5, 0.5, 0.0], [0.25, 0.0, 0.75]))
    # <p, q> = 1/8, <p, p> = 1/2, <q, q> = 5/8
    wanted = -2 * math.log(1 / 8) + math.log(1 / 2) + math.log(5 / 8)
    assert float(cauchy_schwarz(p_V.log(), q_V.log())) == pytest.approx(wanted)
    assert float(cauchy_schwarz(q_V.log(), p_V.log())) == pytest.approx(wanted)
    logits_V = torch.tensor([0.0, 1.0, 2.0], requires_grad=True)
    same = cauchy_schwarz(logits_V.log_softmax(0), logits_V.detach().log_softmax(0))
    same.backward()
    assert same.item() == pytest.approx(0.0, abs=1e-6)
    assert logits_V.grad is not None
    assert logits_V.grad.abs().max() < 1e-6


def test_the_gradient_of_cauchy_schwarz_stays_small_at_tokens_that_one_side_does_not_have() -> None:
    logits_V = torch.tensor([0.0, 0.5, -60.0], requires_grad=True)
    other_V = torch.tensor([0.0, 0.0, 1.0]).log_softmax(0)
    found = []
    for divergence in (cauchy_schwarz, lambda p, q: exact_kl(q, p)):
        (gradient_V,) = torch.autograd.grad(divergence(logits_V.log_softmax(0), other_V), logits_V)
        found.append((divergence(logits_V.log_softmax(0), other_V).item(), gradient_V[2].item()))
    assert found[0][0] < 3 < 30 < found[1][0]
    assert found[0][1] == pytest.approx(0.0, abs=1e-6)  # no pull back to a token that is lost
    assert found[1][1] < -0.5


def test_cauchy_schwarz_has_the_gradient_of_its_definition() -> None:
    def by_definition(logits_V: Tensor) -> Tensor:
        p_V, q_V = logits_V.softmax(0), REFERENCE_LOGPROBS_V.exp()
        return -2 * (p_V @ q_V).log() + (p_V @ p_V).log() + (q_V @ q_V).log()

    wanted = gradient(by_definition)
    found = gradient(lambda logits_V: cauchy_schwarz(logits_V.log_softmax(0), REFERENCE_LOGPROBS_V))
    torch.testing.assert_close(found, wanted)
