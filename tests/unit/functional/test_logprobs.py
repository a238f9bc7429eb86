"""Chunked log-probs and entropies against a full softmax, and what they keep in memory."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from rlkl.functional.kl import cauchy_schwarz, exact_kl, top_k_and_tail
from rlkl.functional.logprobs import (
    TokenScores,
    WantedScores,
    chunked_logprobs_and_entropy,
    chunked_scores_against_reference,
)

TOKENS, HIDDEN, VOCABULARY = 11, 6, 17


def full(hidden_NH: Tensor, head: nn.Module, targets_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    distribution = torch.distributions.Categorical(logits=head(hidden_NH).float() / temperature)
    return distribution.log_prob(targets_N), distribution.entropy()


def problem(dtype: torch.dtype) -> tuple[Tensor, nn.Linear, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden_NH = torch.randn(TOKENS, HIDDEN, generator=generator).to(dtype).requires_grad_()
    head = nn.Linear(HIDDEN, VOCABULARY).to(dtype)
    with torch.no_grad():
        head.weight.copy_(torch.randn(VOCABULARY, HIDDEN, generator=generator))
        head.bias.copy_(torch.randn(VOCABULARY, generator=generator))
    return hidden_NH, head, torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)


def test_two_token_vocabulary_by_hand() -> None:
    hidden_NH = torch.tensor([[0.0, math.log(3.0)]])  # probabilities 1/4 and 3/4
    logprobs_N, entropy_N = chunked_logprobs_and_entropy(
        hidden_NH, nn.Identity(), torch.tensor([1]), temperature=1.0, chunk_tokens=4, with_entropy=True
    )
    assert logprobs_N.item() == pytest.approx(math.log(0.75))
    assert entropy_N.item() == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))


def test_temperature_divides_the_logits() -> None:
    logprobs_N, _ = chunked_logprobs_and_entropy(
        torch.tensor([[0.0, 2 * math.log(3.0)]]),
        nn.Identity(),
        torch.tensor([0]),
        temperature=2.0,
        chunk_tokens=1,
        with_entropy=False,
    )
    assert logprobs_N.item() == pytest.approx(math.log(0.25))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk_tokens", [1, 4, 11, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equals_the_full_softmax_in_value_and_gradient(
    dtype: torch.dtype, chunk_tokens: int, temperature: float
) -> None:
    hidden_NH, head, targets_N = problem(dtype)
    inputs = (hidden_NH, head.weight, head.bias)
    chunked = chunked_logprobs_and_entropy(
        hidden_NH, head, targets_N, temperature=temperature, chunk_tokens=chunk_tokens, with_entropy=True
    )
    whole = full(hidden_NH, head, targets_N, temperature)
    # Different weights for each token and output, so that no two gradients can stand in for each other.
    weights_N = torch.linspace(-1, 2, TOKENS)
    grads_chunked = torch.autograd.grad((weights_N * (chunked[0] + 3 * chunked[1])).sum(), inputs)
    grads_whole = torch.autograd.grad((weights_N * (whole[0] + 3 * whole[1])).sum(), inputs)

    for ours, theirs in zip(chunked, whole, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    # bfloat16 weights sum their gradient over chunks in bfloat16: 8 bits, relative to the largest entry.
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for ours, theirs in zip(grads_chunked, grads_whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * theirs.abs().max().item())


def test_without_entropy_there_is_none() -> None:
    hidden_NH, head, targets_N = problem(torch.float32)
    logprobs_N, entropy_N = chunked_logprobs_and_entropy(
        hidden_NH, head, targets_N, temperature=1.0, chunk_tokens=4, with_entropy=False
    )
    torch.testing.assert_close(logprobs_N, full(hidden_NH, head, targets_N, 1.0)[0])
    assert entropy_N.tolist() == [0.0] * TOKENS
    assert not entropy_N.requires_grad


def test_logits_live_one_chunk_at_a_time_and_are_computed_again_in_backward() -> None:
    hidden_NH, head, targets_N = problem(torch.float32)
    rows: list[int] = []

    def counting_head(hidden_CH: Tensor) -> Tensor:
        rows.append(hidden_CH.shape[0])
        return head(hidden_CH)

    logprobs_N, entropy_N = chunked_logprobs_and_entropy(
        hidden_NH, counting_head, targets_N, temperature=1.0, chunk_tokens=4, with_entropy=True
    )
    assert rows == [4, 4, 3]
    (logprobs_N.sum() + entropy_N.sum()).backward()
    assert sorted(rows[3:]) == [3, 4, 4]

    rows.clear()
    with torch.no_grad():
        chunked_logprobs_and_entropy(
            hidden_NH, counting_head, targets_N, temperature=1.0, chunk_tokens=4, with_entropy=True
        )
    assert rows == [4, 4, 3]


def test_no_tokens() -> None:
    _, head, _ = problem(torch.float32)
    logprobs_N, entropy_N = chunked_logprobs_and_entropy(
        torch.zeros(0, HIDDEN),
        head,
        torch.zeros(0, dtype=torch.int64),
        temperature=1.0,
        chunk_tokens=4,
        with_entropy=True,
    )
    assert logprobs_N.shape == entropy_N.shape == (0,)


EVERYTHING = WantedScores(entropy=True, kl_reference_to_policy=True, kl_policy_to_reference=True, cauchy_schwarz=True)


def reference_problem(dtype: torch.dtype) -> tuple[Tensor, nn.Linear]:
    generator = torch.Generator().manual_seed(1)
    head = nn.Linear(HIDDEN, VOCABULARY).to(dtype)
    with torch.no_grad():
        head.weight.copy_(torch.randn(VOCABULARY, HIDDEN, generator=generator))
        head.bias.copy_(torch.randn(VOCABULARY, generator=generator))
    return torch.randn(TOKENS, HIDDEN, generator=generator).to(dtype), head


def full_against_reference(
    hidden: tuple[Tensor, Tensor], heads: tuple[nn.Module, nn.Module], targets_N: Tensor, temperature: float
) -> TokenScores:
    policy = torch.distributions.Categorical(logits=heads[0](hidden[0]).float() / temperature)
    reference = torch.distributions.Categorical(logits=heads[1](hidden[1]).float().detach() / temperature)
    between = torch.distributions.kl_divergence
    return TokenScores(
        policy.log_prob(targets_N),
        policy.entropy(),
        between(reference, policy),
        between(policy, reference),
        cauchy_schwarz(policy.logits, reference.logits),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk_tokens", [1, 7, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_against_a_reference_equal_the_full_computation_in_value_and_gradient(
    dtype: torch.dtype, chunk_tokens: int, temperature: float
) -> None:
    (hidden_NH, head, targets_N), (reference_NH, reference_head) = problem(dtype), reference_problem(dtype)
    hidden, heads, inputs = (hidden_NH, reference_NH), (head, reference_head), (hidden_NH, head.weight, head.bias)
    chunked = chunked_scores_against_reference(
        hidden, heads, targets_N, EVERYTHING, temperature=temperature, chunk_tokens=chunk_tokens
    )
    whole = full_against_reference(hidden, heads, targets_N, temperature)
    weights_SN = torch.linspace(-1, 2, 5 * TOKENS).view(5, TOKENS)
    grads_chunked = torch.autograd.grad((weights_SN * torch.stack(chunked)).sum(), inputs)
    grads_whole = torch.autograd.grad((weights_SN * torch.stack(whole)).sum(), inputs)

    for ours, theirs in zip(chunked, whole, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for ours, theirs in zip(grads_chunked, grads_whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * theirs.abs().max().item())


def test_gradient_reaches_the_policy_alone() -> None:
    hidden_NH, head, targets_N = problem(torch.float32)
    reference_NH, reference_head = reference_problem(torch.float32)
    reference_NH.requires_grad_()
    scores = chunked_scores_against_reference(
        (hidden_NH, reference_NH), (head, reference_head), targets_N, EVERYTHING, temperature=1.0, chunk_tokens=4
    )
    torch.stack(scores).sum().backward()
    assert hidden_NH.grad is not None
    assert hidden_NH.grad.abs().max() > 0
    assert reference_NH.grad is None
    assert reference_head.weight.grad is None


def test_scores_that_are_not_wanted_are_zero_and_have_no_gradient() -> None:
    hidden_NH, head, targets_N = problem(torch.float32)
    reference_NH, reference_head = reference_problem(torch.float32)
    scores = chunked_scores_against_reference(
        (hidden_NH, reference_NH),
        (head, reference_head),
        targets_N,
        WantedScores(kl_reference_to_policy=True),
        temperature=1.0,
        chunk_tokens=4,
    )
    for unwanted_N in (scores.entropy_N, scores.kl_policy_to_reference_N):
        assert unwanted_N.tolist() == [0.0] * TOKENS
        assert not unwanted_N.requires_grad
    assert scores.logprobs_N.requires_grad
    assert (scores.kl_reference_to_policy_N > 0).all()


def test_top_k_scores_are_those_of_the_cut_distributions() -> None:
    hidden_NH, head, targets_N = problem(torch.float32)
    reference_NH, reference_head = reference_problem(torch.float32)
    wanted = WantedScores(kl_reference_to_policy=True, kl_policy_to_reference=True, entropy=True, top_k=3)
    with torch.no_grad():
        scores = chunked_scores_against_reference(
            (hidden_NH, reference_NH), (head, reference_head), targets_N, wanted, temperature=1.0, chunk_tokens=4
        )
        policy_NV, reference_NV = head(hidden_NH).log_softmax(-1), reference_head(reference_NH).log_softmax(-1)
        whole = full_against_reference((hidden_NH, reference_NH), (head, reference_head), targets_N, 1.0)
    policy_NK, reference_NK = top_k_and_tail(policy_NV, reference_NV, 3)
    torch.testing.assert_close(scores.kl_reference_to_policy_N, exact_kl(reference_NK, policy_NK))
    torch.testing.assert_close(scores.kl_policy_to_reference_N, exact_kl(policy_NK, reference_NK))
    assert (scores.kl_reference_to_policy_N < whole.kl_reference_to_policy_N).all()
    torch.testing.assert_close(scores[:2], whole[:2])


def test_logits_of_both_models_live_half_a_chunk_at_a_time() -> None:
    hidden_NH, head, targets_N = problem(torch.float32)
    reference_NH, reference_head = reference_problem(torch.float32)
    rows: list[int] = []

    def counting_head(hidden_CH: Tensor) -> Tensor:
        rows.append(hidden_CH.shape[0])
        return head(hidden_CH)

    scores = chunked_scores_against_reference(
        (hidden_NH, reference_NH),
        (counting_head, reference_head),
        targets_N,
        EVERYTHING,
        temperature=1.0,
        chunk_tokens=8,
    )
    assert rows == [4, 4, 3]
    torch.stack(scores).sum().backward()
    assert sorted(rows[3:]) == [3, 4, 4]
