"""Find the words of a tokenizer's vocabulary."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rlkl.errors import RecipeError
from rlkl.functional.neighbours import word_tables


def words_of(path: str) -> tuple[Tensor, Tensor]:
    """Return `word_tables` for the tokenizer of the model in the folder ``path``.

    Raises `RecipeError` if the folder has none, or one without any letter or digit.
    """
    from transformers import AutoTokenizer

    advice = "Name the token ids between spans with break_ids"
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise RecipeError(
            f"update.terms: the term span finds words by the policy's tokenizer, and that of '{path}' cannot be loaded "
            f"({type(error).__name__}: {error}). {advice}"
        ) from error
    words = word_tables(texts_inside(tokenizer))
    if not words[0].any():  # transformers makes an empty tokenizer for a folder without its files
        raise RecipeError(
            f"update.terms: the term span finds words by the policy's tokenizer, and that of '{path}' has no token "
            f"with a letter or a digit. {advice}"
        )
    return words


def texts_inside(tokenizer: Any) -> list[str]:
    """Return the text of each token id after another token, so that a space which the tokenizer adds is seen.

    The first ordinary token whose text is a letter or a digit comes before each. Special tokens have an empty text.
    """
    ids = range(len(tokenizer))

    def decoded(rows: list[list[int]]) -> list[str]:
        return tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    alone = decoded([[token] for token in ids])
    before = next((token for token in ids if alone[token].isascii() and alone[token].isalnum()), None)
    if before is None:
        return alone
    start = alone[before]
    both = decoded([[before, token] for token in ids])
    return [text[len(start) :] if text.startswith(start) else one for text, one in zip(both, alone, strict=True)]
