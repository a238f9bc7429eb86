"""Log-probabilities and entropies of tokens from hidden states, without the logits of a whole batch.

Shapes: N tokens (of any sequences), C tokens of one chunk, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]
"""Hidden states ``[C, H]`` to logits ``[C, V]`` (a language-model head)."""


def chunked_logprobs_and_entropy(
    hidden_NH: Tensor,
    head: Head,
    targets_N: Tensor,
    *,
    temperature: float,
    chunk_tokens: int,
    with_entropy: bool,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target token and entropy of its distribution, ``softmax(head(hidden) / temperature)``.

    Logits exist for ``chunk_tokens`` tokens at a time: the backward pass computes them again, chunk by chunk, so memory
    is O(chunk_tokens * V) in both directions. Logits are raised to float32 before the softmax.

    Returns:
        ``logprobs_N`` and ``entropy_N`` in nats, float32, with gradient to ``hidden_NH`` and to whatever parameters
        ``head`` uses. ``entropy_N`` is zeros without gradient unless ``with_entropy``.
    """
    score = partial(_score_chunk, head, temperature=temperature, with_entropy=with_entropy)
    logprobs, entropies = [], []
    for hidden_CH, targets_C in zip(hidden_NH.split(chunk_tokens), targets_N.split(chunk_tokens), strict=True):
        if torch.is_grad_enabled():
            logprobs_C, entropy_C = checkpoint(score, hidden_CH, targets_C, use_reentrant=False)
        else:
            logprobs_C, entropy_C = score(hidden_CH, targets_C)
        logprobs.append(logprobs_C)
        entropies.append(entropy_C)
    return torch.cat(logprobs), torch.cat(entropies)


def _score_chunk(
    head: Head, hidden_CH: Tensor, targets_C: Tensor, *, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor]:
    all_logprobs_CV = F.log_softmax(head(hidden_CH).float() / temperature, dim=-1)
    logprobs_C = all_logprobs_CV.gather(-1, targets_C.unsqueeze(-1)).squeeze(-1)
    if not with_entropy:
        return logprobs_C, torch.zeros_like(logprobs_C)
    return logprobs_C, -(all_logprobs_CV.exp() * all_logprobs_CV).sum(dim=-1)
