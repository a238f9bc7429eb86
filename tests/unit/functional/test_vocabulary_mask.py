"""KL over some ids of the vocabulary: by hand, at the ends of the mask, and what gets a gradient."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlkl.errors import LearnerError
from rlkl.functional.kl import exact_kl, top_k_and_tail
from rlkl.functional.linear_scores import LinearHead
from rlkl.functional.logprobs import TokenScores, WantedScores, chunked_scores_against_reference
from rlkl.functional.vocabulary_mask import counted, counted_ids, divergence
from rlkl.quantities import VocabularyMask

TOKENS, HIDDEN, VOCABULARY = 11, 6, 17


def between(left_V: Tensor, right_V: Tensor, mask: VocabularyMask) -> Tensor:
    return divergence(mask)(counted(left_V, mask), counted(right_V, mask))


def logits(seed: int, rows: int = 200) -> Tensor:
    return 3 * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def test_three_tokens_by_hand() -> None:
    left, right = torch.tensor([0.6, 0.3, 0.1]).log(), torch.tensor([0.2, 0.2, 0.6]).log()
    raw = VocabularyMask((0,), renormalise=False)
    assert between(left, right, raw).item() == pytest.approx(0.3 * math.log(0.3 / 0.2) + 0.1 * math.log(0.1 / 0.6))
    assert between(left, right, raw).item() < 0, "the raw sum is no divergence"
    proper = VocabularyMask((0,))
    wanted = 0.75 * math.log(0.75 / 0.25) + 0.25 * math.log(0.25 / 0.75)
    assert between(left, right, proper).item() == pytest.approx(wanted)
    assert between(left, right, VocabularyMask((1, 2), "named")).item() == pytest.approx(wanted)


@pytest.mark.parametrize("mask", [VocabularyMask(()), VocabularyMask(tuple(range(VOCABULARY)), "named")])
@pytest.mark.parametrize("renormalise", [True, False])
def test_a_mask_of_ones_is_the_full_kl_and_has_its_gradient(mask: VocabularyMask, renormalise: bool) -> None:
    policy, model_V = logits(0).requires_grad_(), logits(1).log_softmax(-1)
    found = between(model_V, policy.log_softmax(-1), replace(mask, renormalise=renormalise))
    wanted = exact_kl(model_V, policy.log_softmax(-1))
    torch.testing.assert_close(found, wanted)
    slopes = [torch.autograd.grad(one.sum(), policy)[0] for one in (found, wanted)]
    torch.testing.assert_close(*slopes, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mask", [VocabularyMask((), "named"), VocabularyMask(tuple(range(VOCABULARY)))])
@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("top_k", [None, 3])
def test_a_mask_of_zeros_is_zero_and_has_no_gradient(
    mask: VocabularyMask, renormalise: bool, top_k: int | None
) -> None:
    policy, mask = logits(0).requires_grad_(), replace(mask, renormalise=renormalise)
    sides = (counted(policy.log_softmax(-1), mask), counted(logits(1).log_softmax(-1), mask))
    for left, right in (sides, sides[::-1]):
        pair = (left, right) if top_k is None else top_k_and_tail(left, right, top_k)
        found = divergence(mask)(*pair)
        assert found.tolist() == [0.0] * 200
        (slope,) = torch.autograd.grad(found.sum(), policy, retain_graph=True)
        assert slope.abs().sum() == 0


def test_renormalised_is_never_below_zero_and_raw_sometimes_is() -> None:
    left, right = logits(0).log_softmax(-1), logits(1).log_softmax(-1)
    mask = VocabularyMask((2, 3, 5, 7))
    assert (between(left, right, mask) >= 0).all()
    assert (between(left, left, mask) == 0).all()
    assert (between(left, right, replace(mask, renormalise=False)) < 0).any()


def test_renormalised_gives_masked_logits_no_gradient_and_raw_pushes_them_down() -> None:
    policy, model_V, mask = logits(0).requires_grad_(), logits(1).log_softmax(-1), VocabularyMask((2, 5))
    others = counted_ids(mask, VOCABULARY)
    (slope,) = torch.autograd.grad(between(model_V, policy.log_softmax(-1), mask).sum(), policy)
    assert slope[:, [2, 5]].abs().max() < 1e-6, "rounding alone"
    assert slope[:, others].abs().sum() > 1
    (slope,) = torch.autograd.grad(
        between(model_V, policy.log_softmax(-1), replace(mask, renormalise=False)).sum(), policy
    )
    wanted = policy.softmax(-1)[:, [2, 5]] * model_V.exp()[:, others].sum(-1, keepdim=True)
    torch.testing.assert_close(slope[:, [2, 5]], wanted, rtol=1e-4, atol=1e-6)
    assert (slope[:, [2, 5]] > 0).all(), "descent lowers them: the normaliser is all that they enter"


def test_what_the_masked_ids_have_together_changes_nothing() -> None:
    policy, model, mask = logits(0), logits(1), VocabularyMask((2, 5))
    moved = policy.clone()
    moved[:, [2, 5]] += torch.tensor([4.0, -3.0])
    torch.testing.assert_close(
        between(model.log_softmax(-1), moved.log_softmax(-1), mask),
        between(model.log_softmax(-1), policy.log_softmax(-1), mask),
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_order_of_the_vocabulary_does_not_matter() -> None:
    order = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(3))
    left, right = logits(0).log_softmax(-1), logits(1).log_softmax(-1)
    places = tuple(int((order == one).nonzero()) for one in (2, 5))
    for renormalise in (True, False):
        mask = VocabularyMask((2, 5), renormalise=renormalise)
        moved = between(left[:, order], right[:, order], replace(mask, token_ids=places))
        torch.testing.assert_close(moved, between(left, right, mask), rtol=1e-5, atol=1e-6)


def test_top_k_of_the_counted_ids_is_a_lower_bound_that_grows() -> None:
    mask = VocabularyMask((2, 5))
    policy, model = (counted(logits(seed).log_softmax(-1), mask) for seed in (0, 1))
    whole, before = exact_kl(model, policy), torch.zeros(200)
    for k in (1, 4, 8, VOCABULARY - 2, VOCABULARY):
        policy_K, model_K = top_k_and_tail(policy, model, k)
        found = exact_kl(model_K, policy_K)
        assert (found >= before - 1e-5).all()
        assert (found <= whole + 1e-5).all()
        before = found
    torch.testing.assert_close(before, whole, rtol=1e-4, atol=1e-5)


def test_an_id_that_the_vocabulary_lacks_is_refused() -> None:
    with pytest.raises(LearnerError, match="vocabulary_ids names 17, and the vocabulary has the ids 0 to 16"):
        counted(logits(0), VocabularyMask((3, 17)))


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk_tokens", [1, 4, 100])
def test_chunks_equal_the_whole_in_value_and_gradient(renormalise: bool, dtype: torch.dtype, chunk_tokens: int) -> None:
    mask = VocabularyMask((1, 4, 9), renormalise=renormalise)
    hidden, heads = _problem(dtype)
    wanted = WantedScores(entropy=True, kl_reference_to_policy=True, kl_policy_to_reference=True, vocabulary=mask)
    targets_N = torch.arange(TOKENS)
    scores = chunked_scores_against_reference(
        hidden, heads, targets_N, wanted, temperature=0.7, chunk_tokens=chunk_tokens
    )
    policy, model = (F.log_softmax(head(x).float() / 0.7, -1) for x, head in zip(hidden, heads, strict=True))
    whole = (
        policy.gather(-1, targets_N[:, None])[:, 0],
        -(policy.exp() * policy).sum(-1),
        between(model.detach(), policy, mask),
        between(policy, model.detach(), mask),
    )
    for ours, theirs in zip(scores[:4], whole, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    inputs = (hidden[0], heads[0].weight)
    slopes = [torch.autograd.grad(one[2].sum() + one[3].sum(), inputs) for one in (scores, whole)]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for ours, theirs in zip(*slopes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * theirs.abs().max().item())


def test_a_large_vocabulary_is_not_scored_by_tiles_which_know_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlkl.functional.logprobs.TILE_IDS", 4)
    hidden, heads = _problem(torch.float32)
    tiled = tuple(LinearHead(weight_VH=head.weight, bias_V=head.bias) for head in heads)
    wanted = WantedScores(kl_reference_to_policy=True, vocabulary=VocabularyMask((1, 4, 9)))

    def score(with_heads) -> TokenScores:
        return chunked_scores_against_reference(
            hidden, with_heads, torch.arange(TOKENS), wanted, temperature=1.0, chunk_tokens=4
        )

    torch.testing.assert_close(score(tiled)[2], score(heads)[2])


def _problem(dtype: torch.dtype) -> tuple[tuple[Tensor, Tensor], tuple[nn.Linear, nn.Linear]]:
    generator = torch.Generator().manual_seed(0)
    hidden = tuple(torch.randn(TOKENS, HIDDEN, generator=generator).to(dtype) for _ in range(2))
    heads = tuple(nn.Linear(HIDDEN, VOCABULARY).to(dtype) for _ in range(2))
    for head in heads:
        with torch.no_grad():
            head.weight.copy_(torch.randn(VOCABULARY, HIDDEN, generator=generator))
            head.bias.copy_(torch.randn(VOCABULARY, generator=generator))
    return (hidden[0].requires_grad_(), hidden[1]), (heads[0], heads[1])
