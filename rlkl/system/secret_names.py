"""Recognise secrets by the names of settings, such as ``X-Api-Key``, ``apiKeys`` or ``client_secret``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
_SECRETS = {"secret", "password", "passwd", "passphrase", "passcode", "credential", "authorization", "auth", "cookie"}
_SECRETS |= {"apikey", "apitoken", "authtoken", "accesstoken", "accesskey", "secretkey", "privatekey"}
_MAYBE_SECRETS = {"key", "token", "pass", "pwd", "sig", "signature", "bearer", "jwt"}
_KINDS_OF_SECRET_KEYS = {"api", "access", "secret", "private", "auth", "bearer", "hf", "refresh", "client"}
_KINDS_OF_SECRET_KEYS |= {"subscription", "security"}
"""Words that make ``key`` or ``token`` behind them a secret."""
_SINGULARS = _SECRETS | _MAYBE_SECRETS
_OF_VARIABLES = {"variable", "env"}
_LABELS = ("name", "key", "header")
"""Keys that name the ``value`` beside them: ``{name: X-Api-Key, value: ...}``."""

_SPECIAL_TOKEN = re.compile(r"<[^<>\s]*>|\[[^\[\]\s]*\]")
_PLAIN_PIECE = re.compile(r"[^\W\d_]{1,20}|[^\W\d_]{0,5}\d{1,4}[^\W\d_]{0,2}")


class Secrecy(IntEnum):
    """Certainty that a value is a secret, by the name of its setting."""

    NO = 0
    MAYBE = 1
    """The value decides: ``key`` may be a column's name, and ``token`` a special token."""
    YES = 2


def words_of(name: str) -> list[str]:
    """Split a name at punctuation and before capitals; return its words in lower case, secrets in the singular.

    >>> words_of("X-Api-Keys"), words_of("hfToken2")
    (['x', 'api', 'key'], ['hf', 'token'])
    """
    words = [word.lower() for word in _WORD.findall(name)]
    return [word[:-1] if word.endswith("s") and word[:-1] in _SINGULARS else word for word in words]


def secrecy_of(name: str) -> Secrecy:
    """Return the certainty that the value of a setting with this name is a secret.

    >>> secrecy_of("api-key").name, secrecy_of("eos_token").name, secrecy_of("api_key_variable").name
    ('YES', 'MAYBE', 'NO')
    """
    *before, last = words_of(name) or [""]
    if last in _SECRETS or (last in ("key", "token") and before[-1:] and before[-1] in _KINDS_OF_SECRET_KEYS):
        return Secrecy.YES
    return Secrecy.MAYBE if last in _MAYBE_SECRETS else Secrecy.NO


def deciding_name(outer: str, key: str, beside: Mapping[Any, Any]) -> str:
    """Return the name that decides whether the value of ``key`` is a secret.

    It is ``key``, unless the name around the mapping, or a label beside the value, is more surely a secret's. A key
    that names an environment variable always decides for itself.

    ``outer``: the name that decides for the mapping. ``beside``: the mapping.
    """
    if set(words_of(key)[-1:]) & _OF_VARIABLES:
        return key
    labels = [beside[label] for label in _LABELS if isinstance(beside.get(label), str)] if key == "value" else []
    return max((key, outer, *labels), key=secrecy_of)


def is_plain(text: str) -> bool:
    """Return whether a text looks like words, short numbers or a special token rather than a random key.

    >>> is_plain("final_answer"), is_plain("<|im_end|>"), is_plain("hunter2")
    (True, True, False)
    """
    pieces = [piece for piece in re.split(r"[\W_]+", text) if piece]
    return bool(_SPECIAL_TOKEN.fullmatch(text)) or all(_PLAIN_PIECE.fullmatch(piece) for piece in pieces)
