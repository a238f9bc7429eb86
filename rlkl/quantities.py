"""Quantities that a signal can measure, and the values that say how: fields of `rlkl.signals.Signal`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

Quantity = Literal[
    "logprobs",
    "entropy",
    "kl_to_policy",
    "kl_from_policy",
    "cauchy_schwarz",
    "divergence",
    "answers",
    "heads",
    "hidden",
]
"""logprobs: of the sampled tokens. entropy: of the next-token distribution. kl_to_policy: KL(model || policy) of the
next-token distributions. kl_from_policy: KL(policy || model). cauchy_schwarz: the divergence of both, over the whole
vocabulary. divergence: another one of both, ``[B, T]`` or ``[B, T, D]``, by ``by``. answers: log-probs ``[B, T, K]`` of
the K ``tokens`` among each other, at places of one of them. heads: the output ``[B, T, K]`` of the rule's heads.
hidden: the last hidden states ``[B, T, H]`` after the final norm, at the token itself, in the policy's precision; they
mean nothing at padding."""


class Divergence(Protocol):
    """Compares the policy with a frozen model, token by token; hashable, and equal if its settings are."""

    def __call__(self, policy_CV: Tensor, teacher_CV: Tensor, targets_C: Tensor, heads_CK: Tensor | None) -> Tensor:
        """Return numbers ``[C]`` or ``[C, D]`` from both models' log-probs, the target ids and the rule's heads.

        With a class attribute ``reads_next = True`` a token's number may depend on the token after it. It is then zero
        at a token whose next one is not of the response.
        """
        ...


@dataclass(frozen=True, slots=True)
class VocabularyMask:
    """The token ids of the vocabulary that a KL counts (`rlkl.functional.vocabulary_mask`)."""

    token_ids: tuple[int, ...]
    keep: Literal["others", "named"] = "others"
    """Count all other ids, or ``token_ids`` only."""
    renormalise: bool = True
    """Divide both distributions by their sum over the counted ids, so that the result is a KL."""
