"""Checks and warnings of the two masks of the term ``masked_kl``. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlkl.updates.terms.masked_kl.settings import MaskedKlSettings


def check_masks(settings: MaskedKlSettings) -> None:
    """Raise ValueError for masks that name nothing, leave no KL, or do not go together."""
    named, ids = settings.token_ids, settings.vocabulary_ids
    if not named and not ids:
        raise ValueError(
            "token_ids is empty, and vocabulary_ids too: name the token ids of a mask, or take term: kl for all tokens"
        )
    if not named and settings.keep == "named":
        raise ValueError("keep = named with an empty token_ids: no token counts. Name token_ids, or set keep: others")
    if ids and min(ids) < 0:
        raise ValueError(f"vocabulary_ids = {ids}: a token id is 0 or more")
    if not ids and settings.vocabulary_keep == "named":
        raise ValueError(
            "vocabulary_keep = named with an empty vocabulary_ids: no id counts. Name vocabulary_ids, or set "
            "vocabulary_keep: others"
        )
    if settings.vocabulary_keep == "named" and settings.renormalise and len(set(ids)) == 1:
        raise ValueError(
            f"vocabulary_ids = {ids} with vocabulary_keep = named: divided by its own sum a single id has probability "
            "1 on both sides, so the KL is always 0. Name two ids or more, or set renormalise: false"
        )
    if ids and not settings.renormalise and settings.top_k is not None:
        raise ValueError(
            f"top_k = {settings.top_k} with renormalise = false: a tail of all other ids makes a KL of distributions, "
            "and the raw sum has none. Leave top_k out, or set renormalise: true"
        )


def warnings_about_masks(settings: MaskedKlSettings) -> Iterator[str]:
    """Warn about a raw sum, and about a key without effect."""
    if not settings.renormalise and settings.vocabulary_ids:
        yield (
            "renormalise = false: the sum over some ids of the vocabulary is no KL. It can be below 0, its size says "
            "nothing about the distance, and it pushes the other ids down. Set renormalise: true"
        )
    elif not settings.renormalise:
        yield "renormalise = false does nothing without vocabulary_ids. Name them, or leave renormalise out"
