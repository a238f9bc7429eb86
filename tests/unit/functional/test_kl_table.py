"""The table of ``docs/kl.md``, verified by enumerating a vocabulary of four tokens.

``python -m tests.unit.functional.test_kl_table`` prints it anew.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from rlkl.functional import kl

DOCS = Path(__file__).resolve().parents[3] / "docs" / "kl.md"
POLICY_V = torch.tensor([0.5, 0.25, 0.2, 0.05], dtype=torch.float64)
REFERENCE_V = torch.tensor([0.4, 0.2, 0.1, 0.3], dtype=torch.float64)

TO_REFERENCE = "KL(p ‖ r)"
TO_POLICY = "KL(r ‖ p)"
Direction = Literal["KL(p ‖ r)", "KL(r ‖ p)"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One way to come by a KL. ``of`` maps the policy's and the reference's log-probs to a value for each token."""

    name: str
    of: Callable[[Tensor, Tensor], Tensor]
    estimates: Direction
    descends: Direction | Literal["nothing", "itself"]


def from_sample(name: str, of: Callable[[Tensor, Tensor], Tensor], descends: Direction | Literal["nothing"]) -> Form:
    return Form(name=name, of=of, estimates=TO_REFERENCE, descends=descends)


def exact(name: str, of: Callable[[Tensor, Tensor], Tensor], estimates: Direction, *, cut: bool = False) -> Form:
    """The same value whichever token was sampled."""
    return Form(
        name=name,
        of=lambda policy_V, reference_V: of(policy_V, reference_V).expand(4),
        estimates=estimates,
        descends="itself" if cut else estimates,
    )


def cut_to(k: int, direction: Direction) -> Callable[[Tensor, Tensor], Tensor]:
    def of(policy_V: Tensor, reference_V: Tensor) -> Tensor:
        policy_K, reference_K = kl.top_k_and_tail(policy_V, reference_V, k)
        sides = (policy_K, reference_K) if direction == TO_REFERENCE else (reference_K, policy_K)
        return kl.exact_kl(*sides)

    return of


FORMS = (
    from_sample("k1", kl.kl_policy_to_reference_k1, "nothing"),
    from_sample("k2", kl.kl_policy_to_reference_k2, TO_REFERENCE),
    from_sample("k3", kl.kl_policy_to_reference_k3, TO_POLICY),
    from_sample("k1 descending k2", kl.kl_policy_to_reference_k1_descending_k2, TO_REFERENCE),
    from_sample("k3 descending k2", kl.kl_policy_to_reference_k3_descending_k2, TO_REFERENCE),
    exact("exact, policy to reference", kl.exact_kl, TO_REFERENCE),
    exact("exact, reference to policy", lambda p, r: kl.exact_kl(r, p), TO_POLICY),
    exact("top 2 and tail, policy to reference", cut_to(2, TO_REFERENCE), TO_REFERENCE, cut=True),
    exact("top 2 and tail, reference to policy", cut_to(2, TO_POLICY), TO_POLICY, cut=True),
)
each_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Moments over tokens drawn from the policy; gradients are with respect to its logits, the draw held fixed."""

    mean: float
    bias: float
    std: float
    gradient_V: Tensor
    gradient_std: float
    """Root of the summed variances of the gradient's components."""


def direct(direction: Direction, logits_V: Tensor) -> Tensor:
    """The KL by its definition, independent of `rlkl.functional.kl`."""
    p, r = logits_V.softmax(0), REFERENCE_V
    return (p * (p / r).log()).sum() if direction == TO_REFERENCE else (r * (r / p).log()).sum()


def direct_gradient(direction: Direction) -> Tensor:
    logits_V = POLICY_V.log().requires_grad_()
    return torch.autograd.grad(direct(direction, logits_V), logits_V)[0]


def enumerate_tokens(form: Form, policy_V: Tensor = POLICY_V) -> Row:
    logits_V = policy_V.log().requires_grad_()
    values_V = form.of(logits_V.log_softmax(0), REFERENCE_V.log())
    gradients_VV = torch.stack([torch.autograd.grad(value, logits_V, retain_graph=True)[0] for value in values_V])
    mean = (policy_V * values_V).sum()
    gradient_V = policy_V @ gradients_VV
    return Row(
        mean=mean.item(),
        bias=(mean - direct(form.estimates, logits_V)).item(),
        std=(policy_V * (values_V - mean) ** 2).sum().sqrt().item(),
        gradient_V=gradient_V,
        gradient_std=(policy_V @ (gradients_VV - gradient_V) ** 2).sum().sqrt().item(),
    )


def render() -> Iterator[str]:
    yield "| form | value estimates | mean | bias | std | back-propagated, descends | std of the gradient |"
    yield "|---|---|---|---|---|---|---|"
    for form in FORMS:
        row = enumerate_tokens(form)
        numbers = [f"{abs(x) if abs(x) < 5e-5 else x:.4f}" for x in (row.mean, row.bias, row.std)]
        columns = [form.name, form.estimates, *numbers, form.descends, f"{row.gradient_std:.4f}"]
        yield "| " + " | ".join(columns) + " |"


def test_the_documented_table_is_the_enumerated_one() -> None:
    table = [line for line in DOCS.read_text().splitlines() if line.startswith("|")]
    expected = list(render())
    start = table.index(expected[0])
    assert table[start : start + len(expected)] == expected


@each_form
def test_the_expected_gradient_is_that_of_the_kl_that_the_table_names(form: Form) -> None:
    gradient_V = enumerate_tokens(form).gradient_V
    if form.descends == "nothing":
        torch.testing.assert_close(gradient_V, torch.zeros_like(gradient_V))
    elif form.descends == "itself":
        # Not the whole KL's, but of a lower bound of it that points the same way.
        whole_V = direct_gradient(form.estimates)
        assert 0.8 < torch.cosine_similarity(gradient_V, whole_V, dim=0) < 1 - 1e-6
    else:
        other = TO_POLICY if form.descends == TO_REFERENCE else TO_REFERENCE
        torch.testing.assert_close(gradient_V, direct_gradient(form.descends))
        assert (gradient_V - direct_gradient(other)).abs().max() > 0.05


@each_form
def test_only_k2_and_the_cut_forms_are_biased_and_only_exact_forms_have_no_spread(form: Form) -> None:
    row = enumerate_tokens(form)
    assert (abs(row.bias) < 1e-12) == (form.name != "k2" and form.descends != "itself")
    assert (row.std < 1e-12) == (form.name.startswith(("exact", "top")))
    assert (row.gradient_std < 1e-12) == (form.name.startswith(("exact", "top")))
    if form.descends == "itself":
        assert row.bias < 0


def test_near_the_reference_k3_spreads_less_than_k1_and_far_from_it_more() -> None:
    near_V = 0.95 * REFERENCE_V + 0.05 * POLICY_V
    k1, k3 = FORMS[0], FORMS[2]
    assert enumerate_tokens(k3, near_V).std < 0.2 * enumerate_tokens(k1, near_V).std
    assert enumerate_tokens(k3).std > enumerate_tokens(k1).std


if __name__ == "__main__":
    sys.stdout.write("\n".join(render()) + "\n")
