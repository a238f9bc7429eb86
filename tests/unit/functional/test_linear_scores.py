"""Scores of a linear head by tiles, against autograd through the logits of the whole vocabulary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rlkl.functional import linear_scores as tiled
from rlkl.functional.linear_scores import LinearHead, linear_scores
from rlkl.functional.logprobs import (
    WantedScores,
    chunked_logprobs_and_entropy,
    chunked_scores_against_reference,
)

TOKENS, WIDTH, VOCABULARY = 11, 6, 29
HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"scale": 0.3},
    "capped": {"softcap": 1.5},
    "scaled and capped": {"scale": 1.7, "softcap": 2.0},
}


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the tokens nor the vocabulary are a multiple of a tile."""
    monkeypatch.setattr(tiled, "TILE_IDS", 8)


def numbers(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Case:
    """Hidden states, weights and targets of a policy and a reference."""

    def __init__(self, *, bias: bool = False, dtype: torch.dtype = torch.float32, **shape: Any) -> None:
        self.hidden_NH = numbers(TOKENS, WIDTH, seed=0, dtype=dtype).requires_grad_()
        self.weight_VH = numbers(VOCABULARY, WIDTH, seed=1, dtype=dtype).requires_grad_()
        self.bias_V = numbers(VOCABULARY, seed=2, dtype=dtype).requires_grad_() if bias else None
        self.head = LinearHead(weight_VH=self.weight_VH, bias_V=self.bias_V, **shape)
        self.reference = (
            numbers(TOKENS, WIDTH, seed=3, dtype=dtype),
            LinearHead(weight_VH=numbers(VOCABULARY, WIDTH, seed=4, dtype=dtype), **shape),
        )
        self.targets_N = torch.arange(TOKENS) * 5 % VOCABULARY

    def expected(self, temperature: float) -> tuple[Tensor, ...]:
        policy_NV = F.log_softmax(self.head(self.hidden_NH).float() / temperature, dim=-1)
        reference_NV = F.log_softmax(self.reference[1](self.reference[0]).float() / temperature, dim=-1)
        return (
            policy_NV.gather(1, self.targets_N.unsqueeze(1)).squeeze(1),
            -(policy_NV.exp() * policy_NV).sum(1),
            (reference_NV.exp() * (reference_NV - policy_NV)).sum(1),
            (policy_NV.exp() * (policy_NV - reference_NV)).sum(1),
            torch.zeros(TOKENS),  # the Cauchy-Schwarz divergence is for logits that exist whole
        )

    def gradients(self, scores: tuple[Tensor, ...]) -> list[Tensor]:
        loss = sum((score * numbers(TOKENS, seed=9 + n)).sum() for n, score in enumerate(scores))
        assert isinstance(loss, Tensor)
        inputs = [x for x in (self.hidden_NH, self.weight_VH, self.bias_V) if x is not None]
        return list(torch.autograd.grad(loss, inputs))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("shape", HEADS.values(), ids=HEADS)
def test_scores_and_gradients_are_those_of_autograd(shape: dict[str, Any], bias: bool, temperature: float):
    case = Case(bias=bias, **shape)
    found = linear_scores(
        (case.hidden_NH, case.head),
        case.targets_N,
        temperature=temperature,
        entropy=True,
        reference=case.reference,
        chunk_tokens=4,
    )
    expected = case.expected(temperature)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    for one, other in zip(case.gradients(found), case.gradients(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_without_a_reference_the_kls_are_zero_and_without_entropy_it_is():
    case = Case()
    found = linear_scores((case.hidden_NH, case.head), case.targets_N, temperature=1.0, entropy=False)
    assert not any(score.any() for score in found[1:])
    expected = case.expected(1.0)
    for one, other in zip(case.gradients(found[:1]), case.gradients(expected[:1]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_score_that_nobody_asked_for_has_no_gradient():
    def gradients(used: int) -> list[Tensor]:
        case = Case()
        found = linear_scores((case.hidden_NH, case.head), case.targets_N, temperature=1.0, entropy=False)
        return case.gradients(found[:used])

    for one, other in zip(gradients(4), gradients(1), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("used", range(4))
def test_each_score_has_its_own_gradient(used: int):
    case = Case()
    found = linear_scores(
        (case.hidden_NH, case.head),
        case.targets_N,
        temperature=0.9,
        entropy=True,
        reference=case.reference,
        chunk_tokens=4,
    )
    expected = case.expected(0.9)
    for one, other in zip(case.gradients((found[used],)), case.gradients((expected[used],)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_frozen_weights_get_no_gradient_and_hidden_states_do():
    case = Case()
    head = LinearHead(weight_VH=case.weight_VH.detach())
    found = linear_scores((case.hidden_NH, head), case.targets_N, temperature=1.0, entropy=False)
    (gradient,) = torch.autograd.grad(found.logprobs_N.sum(), [case.hidden_NH])
    (expected,) = torch.autograd.grad(case.expected(1.0)[0].sum(), [case.hidden_NH])
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_huge_logits_stay_finite():
    case = Case(scale=1e4)
    found = linear_scores(
        (case.hidden_NH, case.head), case.targets_N, temperature=1.0, entropy=True, reference=case.reference
    )
    assert all(score.isfinite().all() for score in found)
    assert all(gradient.isfinite().all() for gradient in case.gradients(found))
    assert (found.kl_reference_to_policy_N >= 0).all()


def test_bfloat16_weights_get_gradients_summed_in_float32():
    case = Case(dtype=torch.bfloat16)
    found = linear_scores(
        (case.hidden_NH, case.head), case.targets_N, temperature=1.0, entropy=True, reference=case.reference
    )
    gradients = case.gradients(found)
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16] * 2
    for one, other in zip(gradients, case.gradients(case.expected(1.0)), strict=True):
        torch.testing.assert_close(one, other, rtol=5e-2, atol=1e-1)


def test_no_token_at_all_is_no_error():
    case = Case()
    found = linear_scores((case.hidden_NH[:0], case.head), case.targets_N[:0], temperature=1.0, entropy=True)
    assert [len(score) for score in found] == [0] * 5


def test_the_chunked_functions_take_the_tiles_for_a_large_vocabulary(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rlkl.functional.logprobs.TILE_IDS", 8)
    case = Case()
    logprobs_N, entropy_N = chunked_logprobs_and_entropy(
        case.hidden_NH, case.head, case.targets_N, temperature=0.8, chunk_tokens=3, with_entropy=True
    )
    assert "Scores" in type(logprobs_N.grad_fn).__name__
    expected = case.expected(0.8)
    torch.testing.assert_close(logprobs_N, expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy_N, expected[1], rtol=1e-5, atol=1e-5)
    wanted = WantedScores(kl_reference_to_policy=True, kl_policy_to_reference=True)
    heads = (case.head, case.reference[1])
    hidden = (case.hidden_NH, case.reference[0])
    scores = chunked_scores_against_reference(hidden, heads, case.targets_N, wanted, temperature=0.8, chunk_tokens=3)
    torch.testing.assert_close(scores.kl_reference_to_policy_N, expected[2], rtol=1e-5, atol=1e-5)


def test_tokens_that_a_bias_excludes_leave_the_others_finite():
    """A bias of -inf on whole tiles and on parts of one."""
    case = Case()
    bias_V = torch.zeros(VOCABULARY)
    bias_V[8:20] = -torch.inf
    targets_N = torch.arange(TOKENS) % 8
    head = LinearHead(weight_VH=case.weight_VH, bias_V=bias_V)
    found = linear_scores((case.hidden_NH, head), targets_N, temperature=0.7, entropy=True)
    logits_NV = (case.hidden_NH @ case.weight_VH.T + bias_V) / 0.7
    expected_N = F.log_softmax(logits_NV, dim=-1).gather(1, targets_N.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(found.logprobs_N, expected_N, rtol=1e-5, atol=1e-5)
    assert found.entropy_N.isfinite().all()
    (gradient,) = torch.autograd.grad(found.logprobs_N.sum() + found.entropy_N.sum(), [case.hidden_NH])
    assert gradient.isfinite().all()
