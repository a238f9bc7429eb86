"""Divergences beyond the exact KL: values by hand, limits, bounds, gradients and chunks."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from rlkl.functional.divergences import (
    JensenShannon,
    chunked_divergences,
    jensen_shannon,
)
from rlkl.functional.kl import exact_kl
from rlkl.functional.neighbours import NeighbourProducts
from rlkl.functional.windows import WindowKl
from rlkl.quantities import Divergence


def two(rows: int = 64, words: int = 7, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Log-probs of random policies and teachers, ``[rows, words]`` each."""
    generator = torch.Generator().manual_seed(3)
    policy, teacher = (2 * torch.randn(rows, words, generator=generator, dtype=dtype) for _ in range(2))
    return policy.log_softmax(-1), teacher.log_softmax(-1)


def test_jensen_shannon_by_hand() -> None:
    policy_V, teacher_V = (torch.tensor(x, dtype=torch.float64).log() for x in ([0.5, 0.5, 0.0], [0.25, 0.0, 0.75]))
    # beta = 0.4: the mixture is 0.4 teacher + 0.6 policy = (0.4, 0.3, 0.3)
    to_teacher = 0.25 * math.log(0.25 / 0.4) + 0.75 * math.log(0.75 / 0.3)
    to_policy = 0.5 * math.log(0.5 / 0.4) + 0.5 * math.log(0.5 / 0.3)
    found = jensen_shannon(policy_V, teacher_V, 0.4)
    assert float(found) == pytest.approx(0.4 * to_teacher + 0.6 * to_policy)


def test_jensen_shannon_swaps_with_its_weights_and_is_bounded_by_their_entropy() -> None:
    policy_CV, teacher_CV = two()
    for beta in (0.1, 0.5, 0.8):
        found_C = jensen_shannon(policy_CV, teacher_CV, beta)
        torch.testing.assert_close(found_C, jensen_shannon(teacher_CV, policy_CV, 1 - beta))
        assert bool((found_C > 0).all())
        assert float(found_C.max()) < -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    apart = jensen_shannon(torch.tensor([1.0, 0.0]).log(), torch.tensor([0.0, 1.0]).log(), 0.5)
    assert float(apart) == pytest.approx(math.log(2))


def test_the_ends_of_jensen_shannon_are_the_two_kls_in_value_and_gradient() -> None:
    _, teacher_CV = two()
    logits_CV = torch.randn(64, 7, generator=torch.Generator().manual_seed(5), dtype=torch.float64).requires_grad_()
    for near, beta, kl in (
        (1e-5, 1e-5, lambda policy, teacher: exact_kl(teacher, policy)),
        (1e-5, 1 - 1e-5, exact_kl),
    ):
        found_C, wanted_C = (
            divergence(logits_CV.log_softmax(-1))
            for divergence in (
                lambda policy, beta=beta, near=near: jensen_shannon(policy, teacher_CV, beta) / near,
                lambda policy, kl=kl: kl(policy, teacher_CV),
            )
        )
        torch.testing.assert_close(found_C, wanted_C, rtol=1e-2, atol=1e-3)
        (found,), (wanted,) = (
            torch.autograd.grad(x_C.sum(), logits_CV, retain_graph=True) for x_C in (found_C, wanted_C)
        )
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-3)


def test_the_gradient_of_jensen_shannon_is_that_of_its_definition_and_finite_without_a_common_token() -> None:
    logits_V = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    teacher_V = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)

    def by_definition(beta: float) -> Tensor:
        p_V = logits_V.softmax(0)
        m_V = beta * teacher_V + (1 - beta) * p_V
        return beta * (teacher_V * (teacher_V / m_V).log()).sum() + (1 - beta) * (p_V * (p_V / m_V).log()).sum()

    for beta in (0.1, 0.5, 0.9):
        found = jensen_shannon(logits_V.log_softmax(0), teacher_V.log(), beta)
        gradients = [torch.autograd.grad(x, logits_V)[0] for x in (found, by_definition(beta))]
        torch.testing.assert_close(*gradients)
    masked_V = torch.tensor([0.0, 1.0, -torch.inf], requires_grad=True)
    jensen_shannon(masked_V.log_softmax(0), torch.tensor([0.0, 0.0, 1.0]).log(), 0.5).backward()
    assert masked_V.grad is not None
    assert bool(masked_V.grad.isfinite().all())


def test_with_top_k_jensen_shannon_rises_with_k_to_the_whole_one() -> None:
    policy_CV, teacher_CV = two()
    targets_C = torch.zeros(64, dtype=torch.int64)
    found = [JensenShannon(0.3, k)(policy_CV, teacher_CV, targets_C, None) for k in range(1, 8)]
    for less_C, more_C in pairwise(found):
        assert bool((less_C <= more_C + 1e-12).all())
    torch.testing.assert_close(found[-1], jensen_shannon(policy_CV, teacher_CV, 0.3))
    assert float((found[-1] - found[0]).max()) > 0.01


ALL: list[Divergence] = [
    JensenShannon(0.1),
    JensenShannon(0.7, 3),
    WindowKl(0.8, True),
    WindowKl(0.8, False),
    WindowKl(0.8, True, 0.1),
    WindowKl(0.8, False, 0.1),
    NeighbourProducts(),
]


def heads(rows: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, 1, generator=torch.Generator().manual_seed(6), dtype=dtype)


@pytest.mark.parametrize("divergence", ALL, ids=str)
def test_equal_distributions_and_other_orders_of_the_vocabulary(divergence: Divergence) -> None:
    policy_CV, teacher_CV = two()
    targets_C = torch.randint(7, (64,), generator=torch.Generator().manual_seed(2))
    order_V = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    renamed_C = torch.argsort(order_V)[targets_C]
    torch.testing.assert_close(
        divergence(policy_CV[:, order_V], teacher_CV[:, order_V], renamed_C, heads(64)),
        divergence(policy_CV, teacher_CV, targets_C, heads(64)),
    )
    logits_CV, gates_C1 = teacher_CV.detach().clone().requires_grad_(), heads(64).requires_grad_()
    same_C = divergence(logits_CV.log_softmax(-1), teacher_CV, targets_C, gates_C1)
    same_C = same_C if same_C.ndim == 1 else same_C[:, 0]
    same_C.sum().backward()
    torch.testing.assert_close(same_C, torch.zeros(64, dtype=torch.float64))
    for slope in (logits_CV.grad, gates_C1.grad):
        assert slope is None or float(slope.abs().max()) < 1e-12


@pytest.mark.parametrize("chunk_tokens", [1, 4, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_give_the_whole_computation_in_value_and_gradient(chunk_tokens: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(8, 7).to(dtype), nn.Linear(8, 7).to(dtype)
    gates_N1 = heads(9, torch.float32).requires_grad_()
    first_NH, second_NH = (torch.randn(9, 8, generator=generator).to(dtype).requires_grad_() for _ in range(2))
    hidden = first_NH, second_NH
    targets_N = torch.randint(7, (9,), generator=generator)
    found = chunked_divergences(
        hidden,
        linear,
        (targets_N, gates_N1),
        ALL,
        temperature=0.7,
        chunk_tokens=chunk_tokens,
    )
    policy_NV, teacher_NV = (
        (head(x_NH).float() / 0.7).log_softmax(-1) for head, x_NH in zip(linear, hidden, strict=True)
    )
    wanted = [divergence(policy_NV, teacher_NV.detach(), targets_N, gates_N1) for divergence in ALL]
    for ours_N, theirs_N in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours_N, theirs_N)
        assert ours_N.dtype == torch.float32
    inputs = (hidden[0], linear[0].weight, gates_N1)
    sums = [torch.stack([one.sum() for one in x]).sum() for x in (found, wanted)]
    gradients = [torch.autograd.grad(x, inputs, retain_graph=True) for x in sums]
    for ours, theirs in zip(*gradients, strict=True):
        # Chunks add their gradients of the weights in the weights' own precision.
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=3e-2 if dtype == torch.bfloat16 else 1e-5)
    assert torch.autograd.grad(sums[0], hidden[1], allow_unused=True) == (None,)
    empty = chunked_divergences(
        (hidden[0][:0], hidden[1][:0]), linear, (targets_N[:0], gates_N1[:0]), ALL, temperature=1.0, chunk_tokens=4
    )
    assert [x_N.shape[0] for x_N in empty] == [0] * len(ALL)
