"""Products of the distributions at neighbouring tokens, and which neighbours are of one word.

Shapes: B sequences, T tokens, C tokens of a chunk, V vocabulary, I token ids.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class NeighbourProducts:
    """The squared L2 distance of policy and teacher in the product of the distributions at a token and at the next one.

    With p and q the policy's and the teacher's next-token distributions: sum over v of
    (p_t(v) p_t+1(v) - q_t(v) q_t+1(v))^2, exact over the vocabulary, between 0 and 2. It is zero at the last token.
    Source: the span loss of arXiv 2407.10068, from secondary sources.
    """

    reads_next: ClassVar[bool] = True

    def __call__(self, policy_CV: Tensor, teacher_CV: Tensor, targets_C: Tensor, heads_CK: Tensor | None) -> Tensor:
        policy, teacher = ((x_CV[:-1] + x_CV[1:]).exp() for x_CV in (policy_CV, teacher_CV))
        distance = (policy - teacher).square().sum(dim=-1)
        return F.pad(distance, (0, len(targets_C) - len(distance)))


def next_in_response(response_BT: Tensor) -> Tensor:
    """Return the response tokens ``[B, T]`` whose next token is one of the response, too."""
    return response_BT & F.pad(response_BT[:, 1:], (0, 1))


def joined(after_BT: Tensor, into_BT: Tensor) -> Tensor:
    """Return the tokens ``[B, T]`` that are of one span with the next token.

    ``after_BT`` and ``into_BT``: bool; a span can go on after the token, and from the token before into it.
    """
    return after_BT & F.pad(into_BT[:, 1:], (0, 1))


def looked_up(token_ids_BT: Tensor, flags_I: Tensor) -> Tensor:
    """Return the flag of each token ``[B, T]``; False for ids that ``flags_I`` lacks."""
    known_BT = token_ids_BT < len(flags_I)
    return flags_I[torch.where(known_BT, token_ids_BT, 0)] & known_BT


def word_tables(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return by token id whether a word can go on after it, and from the token before into it: both ``[I]``, bool.

    ``texts``: the text of each id inside of a sentence. A word is a run of letters and digits of any script, and of
    bytes that are a part of one; white space, punctuation and special tokens (empty texts) are in no word.
    """

    last, first = ([is_of_a_word(text[end]) if text else False for text in texts] for end in (-1, 0))
    return torch.tensor(last, dtype=torch.bool), torch.tensor(first, dtype=torch.bool)


def is_of_a_word(character: str) -> bool:
    """Return whether a character is a letter, a digit, an accent, or a part of a character of several bytes."""
    return character == "\N{REPLACEMENT CHARACTER}" or unicodedata.category(character)[0] in "LNM"
