"""The KL over a fixed and a learned window: values by hand, bounds, coverage, gradients."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from rlkl.functional.kl import exact_kl
from rlkl.functional.windows import LOWEST, WindowKl, chunked_likeliest, mass_before, nucleus


def two(rows: int = 64, words: int = 7) -> tuple[Tensor, Tensor]:
    """Log-probs of random policies and teachers, ``[rows, words]`` each."""
    generator = torch.Generator().manual_seed(3)
    policy, teacher = (2 * torch.randn(rows, words, generator=generator, dtype=torch.float64) for _ in range(2))
    return policy.log_softmax(-1), teacher.log_softmax(-1)


def targets(rows: int = 64, words: int = 7) -> Tensor:
    return torch.randint(words, (rows,), generator=torch.Generator().manual_seed(1))


def kept(teacher_CV: Tensor, targets_C: Tensor, mass: float) -> Tensor:
    return nucleus(mass_before(teacher_CV), targets_C, mass)


def test_a_nucleus_is_the_fewest_likeliest_tokens_and_the_token_at_hand() -> None:
    teacher_CV = torch.tensor([[0.1, 0.55, 0.05, 0.3]] * 4).log()
    targets_C = torch.tensor([1, 1, 2, 0])
    found = [kept(teacher_CV, targets_C, mass)[row].nonzero()[:, 0].tolist() for row, mass in enumerate([0.5, 0.6])]
    assert found == [[1], [1, 3]]
    assert kept(teacher_CV, targets_C, 0.6)[2:].int().tolist() == [[0, 1, 1, 1], [1, 1, 0, 1]]
    assert kept(teacher_CV, targets_C, 1e-9).sum(dim=1).tolist() == [1, 1, 2, 2]  # the likeliest one is always kept


@pytest.mark.parametrize("mass", [0.3, 0.8, 0.95])
def test_the_teachers_mass_in_the_window_is_never_below_the_wanted_one(mass: float) -> None:
    policy_CV, teacher_CV = two(rows=500)
    targets_C = targets(500)
    kept_CV = kept(teacher_CV, targets_C, mass)
    fixed = WindowKl(mass, True)(policy_CV, teacher_CV, targets_C, None)
    torch.testing.assert_close(fixed[:, 1], 1 - (policy_CV.exp() * kept_CV).sum(dim=1))
    torch.testing.assert_close(fixed[:, 2], (teacher_CV.exp() * kept_CV).sum(dim=1))
    torch.testing.assert_close(fixed[:, 3], kept_CV.sum(dim=1).double())
    assert float(fixed[:, 2].min()) >= mass - 1e-9
    for width in (-1e6, -1.0, 0.0, 0.5, 3.0):
        found = WindowKl(mass, True, 0.1)(policy_CV, teacher_CV, targets_C, torch.full((500, 1), width).double())
        assert float(found[:, 2].min()) >= mass - 1e-9, "however the gate is trained"
        assert bool((found[:, 2] >= fixed[:, 2] - 1e-12).all())
        log_gate_CV, _ = WindowKl(mass, True, 0.1).gates(teacher_CV, targets_C, torch.full((500, 1), width).double())
        for always_C in (targets_C, teacher_CV.argmax(dim=1)):
            assert bool((log_gate_CV.gather(1, always_C.unsqueeze(1)) == 0).all())


def test_the_kl_of_a_nucleus_by_hand() -> None:
    policy_CV, teacher_CV = (torch.tensor([x]).log() for x in ([0.2, 0.4, 0.3, 0.1], [0.6, 0.2, 0.1, 0.1]))
    targets_C = torch.tensor([2])  # kept: 0 (likeliest), 1 (for the mass of 0.7) and 2 (at hand); the bucket: 3
    forward = 0.6 * math.log(0.6 / 0.2) + 0.2 * math.log(0.2 / 0.4) + 0.1 * math.log(0.1 / 0.3) + 0.0
    found = WindowKl(0.7, True)(policy_CV, teacher_CV, targets_C, None)[0].tolist()
    assert found == pytest.approx([forward, 0.1, 0.9, 3], rel=1e-5)
    targets_C = torch.tensor([0])  # the bucket: 2 and 3, together 0.4 and 0.2
    backward = 0.2 * math.log(0.2 / 0.6) + 0.4 * math.log(0.4 / 0.2) + 0.4 * math.log(0.4 / 0.2)
    found = WindowKl(0.7, False)(policy_CV, teacher_CV, targets_C, None)[0].tolist()
    assert found == pytest.approx([backward, 0.4, 0.8, 2], rel=1e-5)


@pytest.mark.parametrize("forward", [True, False])
def test_a_learned_window_by_hand(forward: bool) -> None:
    """The nucleus of 0.5 is token 0; before tokens 1, 2, 3 come 0.6, 0.8, 0.9: 0.2, 0.6 and 0.8 of the rest."""
    policy, teacher = [0.2, 0.4, 0.3, 0.1], [0.6, 0.2, 0.1, 0.1 - 1e-9]
    gates = [1.0, *(1 / (1 + math.exp(-(0.7 - share) / 0.25)) for share in (0.2, 0.6, 0.8))]
    parts = []
    for x in (policy, teacher):
        passed = [p * gate for p, gate in zip(x, gates, strict=True)]
        parts.append([*passed, sum(x) - sum(passed)])
    left, right = parts[::-1] if forward else parts
    nats = sum(p * math.log(p / q) for p, q in zip(left, right, strict=True))
    policy_CV, teacher_CV = (torch.tensor([x], dtype=torch.float64).log() for x in (policy, teacher))
    found = WindowKl(0.5, forward, 0.25)(policy_CV, teacher_CV, torch.tensor([0]), torch.tensor([[0.7]]).double())
    wanted = [nats, parts[0][-1], sum(parts[1][:-1]), sum(gates)]
    assert found[0].tolist() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("forward", [True, False])
def test_the_kl_of_a_nucleus_rises_with_its_mass_to_the_whole_one(forward: bool) -> None:
    policy_CV, teacher_CV = two()
    targets_C = teacher_CV.argmax(dim=1)
    found = [
        WindowKl(mass, forward)(policy_CV, teacher_CV, targets_C, None)[:, 0] for mass in (0.1, 0.5, 0.9, 1 - 1e-12)
    ]
    for less_C, more_C in pairwise(found):
        assert bool((less_C <= more_C + 1e-12).all())
    whole_C = exact_kl(teacher_CV, policy_CV) if forward else exact_kl(policy_CV, teacher_CV)
    torch.testing.assert_close(found[-1], whole_C)
    assert float(found[0].min()) >= 0


@pytest.mark.parametrize("forward", [True, False])
def test_a_shut_gate_is_the_nucleus_an_open_one_the_whole_kl_and_widening_never_lowers_it(forward: bool) -> None:
    """So a gate that descends the loss can only narrow its window, to the fixed one: what README.md derives."""
    policy_CV, teacher_CV = two()
    targets_C = targets()
    window = WindowKl(0.5, forward, 0.1)
    columns = []
    for width in (-1e4, -0.5, 0.0, 0.3, 0.7, 1.0, 2.0, 1e4):
        width_C1 = torch.full((64, 1), width, dtype=torch.float64, requires_grad=True)
        nats_C = window(policy_CV, teacher_CV, targets_C, width_C1)[:, 0]
        (slope_C1,) = torch.autograd.grad(nats_C.sum(), width_C1)
        assert float(slope_C1.min()) >= -1e-12
        columns.append(nats_C.detach())
    for less_C, more_C in pairwise(columns):
        assert bool((less_C <= more_C + 1e-12).all())
    torch.testing.assert_close(columns[0], WindowKl(0.5, forward)(policy_CV, teacher_CV, targets_C, None)[:, 0])
    whole_C = exact_kl(teacher_CV, policy_CV) if forward else exact_kl(policy_CV, teacher_CV)
    torch.testing.assert_close(columns[-1], whole_C)
    assert float((columns[-1] - columns[0]).max()) > 0.01


@pytest.mark.parametrize("forward", [True, False])
def test_the_gradient_to_policy_and_gate_is_that_of_finite_differences(forward: bool) -> None:
    policy_CV, teacher_CV = two(rows=5)
    logits_CV = policy_CV.clone().requires_grad_()
    width_C1 = torch.tensor([[-0.1], [0.2], [0.5], [0.8], [1.1]], dtype=torch.float64, requires_grad=True)

    def nats(logits_CV: Tensor, width_C1: Tensor) -> Tensor:
        return WindowKl(0.4, forward, 0.2)(logits_CV.log_softmax(-1), teacher_CV, targets(5), width_C1)[:, 0]

    assert torch.autograd.gradcheck(nats, (logits_CV, width_C1))
    (_, slope_C1) = torch.autograd.grad(nats(logits_CV, width_C1).sum(), (logits_CV, width_C1))
    assert float(slope_C1.abs().max()) > 1e-3


def test_tokens_without_any_probability_give_finite_gradients() -> None:
    logits_CV = torch.tensor([[0.0, 1.0, -torch.inf, 0.5]], requires_grad=True)
    teacher_CV = torch.tensor([[0.0, 0.0, 0.7, 0.3]]).log()
    width_C1 = torch.tensor([[0.4]], requires_grad=True)
    for forward in (True, False):
        found = WindowKl(0.5, forward, 0.1)(logits_CV.log_softmax(-1), teacher_CV, torch.tensor([0]), width_C1)
        for slope in torch.autograd.grad(found[:, 0].sum(), (logits_CV, width_C1)):
            assert bool(slope.isfinite().all())


@pytest.mark.parametrize("chunk_tokens", [1, 4, 100])
def test_the_likeliest_log_probs_are_sorted_and_filled_up(chunk_tokens: int) -> None:
    head, hidden_NH = nn.Linear(8, 5), torch.randn(9, 8, generator=torch.Generator().manual_seed(0))
    found = chunked_likeliest(hidden_NH, head, 7, temperature=0.7, chunk_tokens=chunk_tokens)
    wanted = (head(hidden_NH) / 0.7).log_softmax(-1).sort(dim=-1, descending=True).values
    torch.testing.assert_close(found[:, :5], wanted.detach())
    assert bool((found[:, 5:] == LOWEST).all())
    assert not found.requires_grad
    assert chunked_likeliest(hidden_NH[:0], head, 7, temperature=1.0, chunk_tokens=4).shape == (0, 7)
