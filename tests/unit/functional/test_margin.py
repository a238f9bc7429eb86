"""The threshold margin, in one dimension by hand."""

from __future__ import annotations

import pytest
import torch

from rlkl.functional.margin import HIGH, LOW, MIDDLE, classes_of, margin_excess, packed_classes, unpacked_classes

BAND = torch.tensor([-1.0]), torch.tensor([2.0])
"""The low and the high threshold of one dimension."""


def excess(value: float, state_class: int, slack: float = 0.0) -> tuple[float, float]:
    """Return the excess of one number and its slope."""
    hidden = torch.tensor([[value]], requires_grad=True)
    found = margin_excess(hidden, torch.tensor([[state_class]], dtype=torch.uint8), *BAND, slack)
    found.sum().backward()
    assert hidden.grad is not None
    return float(found.detach()), float(hidden.grad)


@pytest.mark.parametrize(
    ("value", "state_class"),
    [(-5.0, LOW), (-1.0, LOW), (-0.999, MIDDLE), (0.0, MIDDLE), (1.999, MIDDLE), (2.0, HIGH), (7.0, HIGH)],
)
def test_a_number_at_or_beyond_a_threshold_is_low_or_high(value: float, state_class: int):
    assert classes_of(torch.tensor([[value]]), *BAND).tolist() == [[state_class]]


@pytest.mark.parametrize(
    ("value", "state_class", "wanted", "slope"),
    [
        (-3.0, LOW, 0.0, 0.0),
        (0.5, LOW, 1.5, 1.0),
        (4.0, LOW, 5.0, 1.0),
        (-3.0, MIDDLE, 2.0, -1.0),
        (0.5, MIDDLE, 0.0, 0.0),
        (4.0, MIDDLE, 2.0, 1.0),
        (-3.0, HIGH, 5.0, -1.0),
        (0.5, HIGH, 1.5, -1.0),
        (4.0, HIGH, 0.0, 0.0),
    ],
)
def test_the_excess_is_the_distance_to_the_band_of_the_class_and_flat_within(
    value: float, state_class: int, wanted: float, slope: float
):
    assert excess(value, state_class) == (wanted, slope)


def test_rounding_within_the_slack_costs_nothing():
    assert excess(2.0 + 1e-3, MIDDLE, slack=1e-2) == (0.0, 0.0)
    assert excess(2.5, MIDDLE, slack=0.25) == (0.25, 1.0)


def test_a_state_has_no_excess_of_its_own():
    hidden_NH = torch.randn(200, 7, generator=torch.Generator().manual_seed(0))
    low_H, high_H = hidden_NH.mean(0) - hidden_NH.std(0), hidden_NH.mean(0) + hidden_NH.std(0)
    classes_NH = classes_of(hidden_NH, low_H, high_H)
    assert margin_excess(hidden_NH, classes_NH, low_H, high_H).abs().sum() == 0
    shares = torch.bincount(classes_NH.flatten().long(), minlength=3) / classes_NH.numel()
    assert shares.tolist() == pytest.approx([0.16, 0.68, 0.16], abs=0.04)


@pytest.mark.parametrize("size", [1, 3, 4, 5, 64])
def test_classes_take_two_bits_each_and_come_back(size: int):
    classes_NH = torch.randint(0, 3, (6, size), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    packed_NP = packed_classes(classes_NH)
    assert packed_NP.shape == (6, -(-size // 4))
    assert torch.equal(unpacked_classes(packed_NP, size), classes_NH)
    assert unpacked_classes(packed_NP[:0], size).shape == (0, size)


def test_bfloat16_states_are_compared_in_float32():
    hidden_NH = torch.tensor([[3.0]], dtype=torch.bfloat16, requires_grad=True)
    found = margin_excess(hidden_NH, torch.tensor([[MIDDLE]], dtype=torch.uint8), *BAND)
    found.sum().backward()
    assert found.dtype == torch.float32
    assert hidden_NH.grad is not None
    assert hidden_NH.grad.tolist() == [[1.0]]
