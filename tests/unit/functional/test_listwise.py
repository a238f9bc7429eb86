"""Plackett-Luce losses: against every order written out, against hand-computed numbers, and at extreme scores."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from rlkl.functional.listwise import list_rows, place_weights, plackett_luce_losses

ONE = torch.ones(1)


def loss_of(scores: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The loss of one list without padding."""
    return plackett_luce_losses(scores[None], targets[None], weights[None], torch.ones(1, len(scores)).bool())[0]


def mean_over_orders(scores: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The definition: each order of falling targets written out, and the mean of their losses."""
    count = len(scores)
    losses = [
        sum((weights[o[k]] * (scores[[*o[k:]]].logsumexp(0) - scores[o[k]]) for k in range(count)), torch.zeros(()))
        for o in itertools.permutations(range(count))
        if all(targets[o[k]] >= targets[o[k + 1]] for k in range(count - 1))
    ]
    return torch.stack(losses).mean()


def draw(seed: int, size: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Random scores, targets with many ties, and their weights."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(size, generator=generator, dtype=torch.float64) * scale
    targets = torch.randint(0, 3, (size,), generator=generator).double()
    return scores.requires_grad_(), targets, targets.softmax(0)


def gradient(loss: Tensor, scores: Tensor) -> Tensor:
    return torch.autograd.grad(loss, scores, retain_graph=True)[0]


def test_hand_computed_numbers() -> None:
    """Scores 2, 1, 0 with weights 0.5, 0.3, 0.2: 0.5 log(1 + e^-1 + e^-2) + 0.3 log(1 + e^-1)."""
    targets, weights = torch.tensor([9.0, 5.0, 1.0]), torch.tensor([0.5, 0.3, 0.2])
    right = loss_of(torch.tensor([2.0, 1.0, 0.0]), targets, weights)
    assert right.item() == pytest.approx(0.5 * 0.40760596 + 0.3 * 0.31326169, abs=1e-7)
    reverse = loss_of(torch.tensor([0.0, 1.0, 2.0]), targets, weights)
    assert reverse.item() == pytest.approx(0.5 * 2.40760596 + 0.3 * 1.31326169, abs=1e-7)


def test_hand_computed_ties() -> None:
    """Two tied scores 1 and 0 above a third of -1: the mean of both orders, place by place."""
    e = math.e
    whole, without_first, without_second = math.log(e + 1 + 1 / e), math.log(1 + 1 / e), math.log(e + 1 / e)
    wanted = 0.4 * (whole + (without_first + without_second) / 2 - (1 + 0))
    found = loss_of(torch.tensor([1.0, 0.0, -1.0]), torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.4, 0.4, 0.2]))
    assert found.item() == pytest.approx(wanted, rel=1e-7)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("size", range(1, 7))
def test_ties_are_the_mean_over_all_their_orders(size: int, scale: float) -> None:
    for seed in range(3):
        scores, targets, weights = draw(seed, size, scale)
        ours, wanted = loss_of(scores, targets, weights), mean_over_orders(scores, targets, weights)
        torch.testing.assert_close(ours, wanted, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(gradient(ours, scores), gradient(wanted, scores), rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_the_gradient_is_the_papers(size: int) -> None:
    """By s_i: sum alpha times its share over all places up to its own, and subtract the alpha of its own place."""
    scores, _, _ = draw(size, size, 2.0)
    targets = -torch.arange(size).double()
    weights = targets.softmax(0)
    shares = torch.stack([torch.cat([torch.zeros(k), scores.detach()[k:].softmax(0)]) for k in range(size)])
    wanted = (weights[:, None] * shares).sum(dim=0) - weights
    torch.testing.assert_close(gradient(loss_of(scores, targets, weights), scores), wanted)


def test_two_members_give_dpos_loss_times_the_weight_of_the_better() -> None:
    scores, targets = torch.tensor([0.3, -0.4]), torch.tensor([2.0, 0.5])
    weights = place_weights(targets[None], torch.ones(1, 2).bool(), tau_L=ONE)[0]
    assert weights.tolist() == pytest.approx([1 / (1 + math.exp(-1.5)), 1 / (1 + math.exp(1.5))])
    wanted = weights[0] * -torch.nn.functional.logsigmoid(torch.tensor(0.7))
    assert loss_of(scores, targets, weights).item() == pytest.approx(wanted.item())


def test_special_weights_give_cross_entropy_and_listmle() -> None:
    scores, targets = torch.tensor([0.5, -1.0, 2.0, 0.0]), torch.tensor([3.0, 4.0, 1.0, 2.0])
    first = torch.tensor([0.0, 1.0, 0.0, 0.0])
    assert loss_of(scores, targets, first).item() == pytest.approx(-scores.log_softmax(0)[1].item())
    order = torch.tensor([1, 0, 3, 2])
    listmle = sum(float(scores[order[k:]].logsumexp(0) - scores[order[k]]) for k in range(4))
    assert loss_of(scores, targets, torch.ones(4)).item() == pytest.approx(listmle)


def test_a_shift_of_all_scores_changes_nothing_and_the_last_place_costs_nothing() -> None:
    scores, targets, weights = draw(3, 6, 2.0)
    ours, moved = loss_of(scores, targets, weights), loss_of(scores + 700.0, targets, weights)
    torch.testing.assert_close(ours, moved)
    assert gradient(ours, scores).sum().abs() < 1e-12
    assert loss_of(scores[:1], targets[:1], weights[:1]).item() == 0
    last = torch.tensor([0.0, 0.0, 1.0])
    assert loss_of(scores[:3], torch.tensor([3.0, 2.0, 1.0]), last).item() == 0


def test_the_teachers_order_costs_least() -> None:
    scores, targets = torch.tensor([3.0, 1.0, 0.0, -2.0]), torch.tensor([4.0, 3.0, 2.0, 1.0])
    weights = targets.softmax(0)
    losses = {o: loss_of(scores[[*o]], targets, weights).item() for o in itertools.permutations(range(4))}
    assert min(losses, key=lambda o: losses[o]) == (0, 1, 2, 3)


@pytest.mark.parametrize("targets", [[4.0, 3.0, 2.0, 1.0], [1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
def test_scores_of_ten_thousand_are_stable(targets: list[float]) -> None:
    for scores in [*itertools.permutations([1e4, -1e4, 0.0, 1e4 - 1])][::5]:
        x, t = torch.tensor(scores, dtype=torch.float32).requires_grad_(), torch.tensor(targets)
        loss = loss_of(x, t, t.softmax(0))
        exact = mean_over_orders(x.detach().double(), t, t.softmax(0).double())
        assert gradient(loss, x).isfinite().all()
        assert loss.item() == pytest.approx(exact.item(), rel=1e-7)


def test_large_blocks_of_ties_are_short() -> None:
    """40 of 64 members tied at one score: the harmonic sums that equal scores give."""
    targets = torch.tensor([1.0] * 40 + [0.0] * 24)
    scores = torch.zeros(64, dtype=torch.float64).requires_grad_()
    loss = loss_of(scores, targets, torch.ones(64))
    assert loss.item() == pytest.approx(math.lgamma(65), rel=1e-12)
    assert gradient(loss, scores)[:40].tolist() == pytest.approx([gradient(loss, scores)[0].item()] * 40)


def test_padding_and_the_order_of_members_do_not_matter() -> None:
    scores, targets, weights = draw(1, 6, 2.0)
    wanted = loss_of(scores, targets, weights)
    order = torch.tensor([5, 2, 0, 1, 4, 3])
    torch.testing.assert_close(loss_of(scores[order], targets[order], weights[order]), wanted)
    present = torch.tensor([[True] * 6 + [False] * 2, [True] * 2 + [False] * 6])

    def pad(x: Tensor, value: float) -> Tensor:
        return torch.stack([torch.cat([x, torch.full((2,), value)]), torch.cat([x[:2], torch.full((6,), value)])])

    both = plackett_luce_losses(pad(scores, math.nan), pad(targets, 1.0), pad(weights, 0.0), present)
    torch.testing.assert_close(both[0], wanted)
    torch.testing.assert_close(both[1], loss_of(scores[:2], targets[:2], weights[:2]))
    assert gradient(both.sum(), scores).isfinite().all()


def test_weights_are_a_softmax_over_present_members() -> None:
    present = torch.tensor([[True, True, False], [True, True, True]])
    targets = torch.tensor([[1.0, 0.0, 50.0], [0.0, 3.0, 3.0]])
    weights = place_weights(targets, present, tau_L=torch.tensor([0.5, 3.0]))
    assert weights[0].tolist() == pytest.approx([0.880797, 0.119203, 0.0], abs=1e-6)
    assert weights[1].tolist() == pytest.approx([0.155362, 0.422319, 0.422319], abs=1e-6)


def test_rows_of_lists_in_any_order() -> None:
    rows, present = list_rows(torch.tensor([7, -1, 2, 7, 2, 7]))
    assert present.tolist() == [[True, True, False], [True, True, True]]
    assert rows[present].tolist() == [2, 4, 0, 3, 5]
    nothing = list_rows(torch.tensor([-1, -1]))
    assert nothing.rows_LG.shape == nothing.present_LG.shape == (0, 1)
