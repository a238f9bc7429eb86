"""Compare the tokens of two models. Two models can be compared by a KL only if equal token ids mean equal tokens."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from rlkl.errors import InputError

logger = logging.getLogger(__name__)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
"""A model with none of them has no tokenizer of its own."""

_SHOWN = 3


def check_same_tokens(key: str, path: str, policy_path: str) -> None:
    """Raise `InputError` if a token id means another token in the model at ``path`` than in the policy.

    ``key`` is the key of ``path`` in the recipe. Ids that only one tokenizer has are ignored: models of one family pad
    their vocabulary. For special and added tokens a difference is a warning: a fine-tuned model may have renamed them.
    A model without tokenizer files is not checked.
    """
    if path == policy_path:
        return
    other, own = _load(key, path), _load("model.path", policy_path)
    if other is None or own is None:
        return
    there, here = ({number: token for token, number in one.get_vocab().items()} for one in (other, own))
    differing = sorted(number for number in there.keys() & here.keys() if there[number] != here[number])
    added = set(other.get_added_vocab().values()) & set(own.get_added_vocab().values())
    if ordinary := [number for number in differing if number not in added]:
        raise InputError(
            f"{key} = {path!r} has another tokenizer than the policy at {policy_path!r}: "
            f"{_listed(ordinary, there, here)}. A KL compares the probabilities of equal ids, so name a model with the "
            "policy's tokenizer"
        )
    if differing:
        logger.warning(
            "%s = %r names some added tokens otherwise than the policy at %r: %s",
            key,
            path,
            policy_path,
            _listed(differing, there, here),
        )


def _listed(ids: Collection[int], there: Mapping[int, str], here: Mapping[int, str]) -> str:
    """List the first ids that differ with the tokens of both models, and count them all."""
    first = [
        f"token id {number} is {there[number]!r} there and {here[number]!r} here" for number in sorted(ids)[:_SHOWN]
    ]
    return f"{', '.join(first)} ({len(ids)} of {len(there.keys() & here.keys())} ids differ)"


def _load(key: str, path: str) -> Any:
    """Load the tokenizer of a model; return None if it has no tokenizer files, or if there is no such model."""
    from transformers import AutoTokenizer
    from transformers.utils.hub import cached_file

    try:
        found = [cached_file(path, name, _raise_exceptions_for_missing_entries=False) for name in TOKENIZER_FILES]
    except OSError:  # no such model, or the hub cannot be reached: loading the model reports it
        return None
    if not any(found):
        return None
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # any error of a tokenizer library is reported with the model's key
        raise InputError(
            f"{key} = {path!r}: its tokenizer cannot be loaded ({type(error).__name__}: {error}), so its token ids "
            "cannot be compared with the policy's. Mend the tokenizer files, or install the package that they need"
        ) from error
