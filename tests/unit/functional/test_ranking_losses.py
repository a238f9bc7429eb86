"""RankNet's loss and the KL of a list, on numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlkl.functional.listwise import hard_preferences, list_kl_losses, ranknet_losses, soft_preferences

ALL = torch.ones(1, 3).bool()
SCORES = torch.tensor([[1.0, 0.0, -0.5]])
TEACHER = torch.tensor([[0.5, 2.0, 0.5]])


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_hard_labels_by_hand() -> None:
    """Pairs 1-2 (0 over 1), 1-3 (a tie), 2-3 (2 over 3), with differences 1, 1.5 and 0.5."""
    wanted = -(log_sigmoid(-1.0) + (log_sigmoid(1.5) + log_sigmoid(-1.5)) / 2 + log_sigmoid(0.5)) / 3
    assert ranknet_losses(SCORES, hard_preferences(TEACHER), ALL).item() == pytest.approx(wanted)


def test_soft_labels_by_hand() -> None:
    low, high = 1 / (1 + math.exp(1.5)), 1 / (1 + math.exp(-1.5))
    first = low * log_sigmoid(1.0) + high * log_sigmoid(-1.0)
    tie = (log_sigmoid(1.5) + log_sigmoid(-1.5)) / 2
    last = high * log_sigmoid(0.5) + low * log_sigmoid(-0.5)
    assert ranknet_losses(SCORES, soft_preferences(TEACHER), ALL).item() == pytest.approx(-(first + tie + last) / 3)


def test_soft_labels_of_one_and_zero_are_never_sure() -> None:
    assert soft_preferences(torch.tensor([[1.0, 0.0]]))[0, 0, 1].item() == pytest.approx(0.7310586)


def test_two_members_are_bradley_and_terrys_loss() -> None:
    two = torch.ones(1, 2).bool()
    loss = ranknet_losses(SCORES[:, :2], hard_preferences(torch.tensor([[3.0, 1.0]])), two)
    assert loss.item() == pytest.approx(-log_sigmoid(1.0))


def test_the_kl_by_hand() -> None:
    """T = 2: the teacher's distribution is softmax(0.25, 1, 0.25), the student's softmax(0.5, 0, -0.25)."""
    t, s = ([math.exp(x / 2) for x in row] for row in (TEACHER[0].tolist(), SCORES[0].tolist()))
    wanted = 4 * sum(a / sum(t) * math.log((a / sum(t)) / (b / sum(s))) for a, b in zip(t, s, strict=True))
    assert list_kl_losses(SCORES, TEACHER, ALL, temperature=2.0).item() == pytest.approx(wanted)


def test_the_kl_is_zero_for_shifted_scores_and_its_gradient_is_that_of_the_softmaxes() -> None:
    assert list_kl_losses(TEACHER + 7, TEACHER, ALL, temperature=2.0).item() == pytest.approx(0.0, abs=1e-12)
    scores = SCORES.double().requires_grad_()
    loss = list_kl_losses(scores, TEACHER, ALL, temperature=2.0).sum()
    (gradient,) = torch.autograd.grad(loss, scores)
    wanted = 2 * ((SCORES.double() / 2).softmax(1) - (TEACHER.double() / 2).softmax(1))
    torch.testing.assert_close(gradient, wanted)


def losses(scores: Tensor, teacher: Tensor, present: Tensor) -> list[Tensor]:
    return [
        ranknet_losses(scores, soft_preferences(teacher), present),
        ranknet_losses(scores, hard_preferences(teacher), present),
        list_kl_losses(scores, teacher, present, temperature=0.7),
    ]


def test_padding_and_order_do_not_matter() -> None:
    present = torch.tensor([[True, True, True, False], [True, True, False, False]])
    scores = torch.tensor([[1.0, 0.0, -0.5, math.nan], [0.3, 0.9, math.nan, math.nan]]).requires_grad_()
    teacher = torch.tensor([[0.5, 2.0, 0.5, 9.0], [1.0, 0.0, 9.0, 9.0]])
    order = torch.tensor([2, 0, 1])
    alone = losses(SCORES[:, order], TEACHER[:, order], ALL)
    for ours, wanted in zip(losses(scores, teacher, present), alone, strict=True):
        assert ours[0].item() == pytest.approx(wanted.item())
        assert torch.autograd.grad(ours.sum(), scores, retain_graph=True)[0].isfinite().all()


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_scores_of_ten_thousand_stay_finite(size: float) -> None:
    scores = (SCORES * size).requires_grad_()
    for loss in losses(scores, TEACHER, ALL):
        assert loss.isfinite().all()
        assert torch.autograd.grad(loss.sum(), scores, retain_graph=True)[0].isfinite().all()
