"""KL over some ids of the vocabulary only: the vocabulary mask of SIU (arXiv 2405.12523).

Shapes: V vocabulary, K ids of it that count. Everything is in nats.

| | value | is a KL |
|---|---|---|
| renormalised | KL of both distributions given that the token is a counted id | yes: never below 0, 0 only if equal |
| raw, the paper's | sum over the counted ids of p log(p / q), p and q as they are | no: below 0 if q has more of them |

The renormalised form ignores the probability that the other ids have together, and gives their logits no gradient. The
raw form of KL(model || policy) is least if the policy gives the other ids nothing at all: it pushes them down, but
only by what the counted ids have of the model's probability.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlkl.errors import LearnerError
from rlkl.functional import kl
from rlkl.quantities import VocabularyMask

Divergence = Callable[[Tensor, Tensor], Tensor]
"""Log-probs ``[..., K]`` of the left and the right side to the divergence ``[...]``."""


def counted_ids(mask: VocabularyMask, vocabulary: int, device: torch.device | None = None) -> Tensor:
    """Return the ids ``[K]`` that count, in order; K is 0 if the mask leaves none.

    Raises:
        LearnerError: the mask names an id that the vocabulary does not have.
    """
    if wrong := sorted(one for one in mask.token_ids if not 0 <= one < vocabulary):
        raise LearnerError(f"vocabulary_ids names {wrong[0]}, and the vocabulary has the ids 0 to {vocabulary - 1}")
    named_V = torch.zeros(vocabulary, dtype=torch.bool, device=device)
    named_V[list(mask.token_ids)] = True
    return (named_V if mask.keep == "named" else ~named_V).nonzero()[:, 0]


def counted(logprobs_V: Tensor, mask: VocabularyMask) -> Tensor:
    """Return the log-probs ``[..., K]`` of the counted ids, normalised among each other if the mask renormalises."""
    index_K = counted_ids(mask, logprobs_V.shape[-1], logprobs_V.device)
    kept = logprobs_V.index_select(-1, index_K)
    return kept.log_softmax(dim=-1) if mask.renormalise else kept


def divergence(mask: VocabularyMask | None) -> Divergence:
    """Return the function that compares two outputs of `counted`; without a mask, the exact KL."""
    return kl.exact_kl if mask is None or mask.renormalise else raw_sum


def raw_sum(left_K: Tensor, right_K: Tensor) -> Tensor:
    """Compute the sum of left log(left / right) over the last dimension. It is no divergence and can be below zero."""
    left_p = left_K.exp()
    return (left_p * torch.where(left_p > 0, left_K - right_K, 0.0)).sum(dim=-1)
