"""Find secrets in texts: by their shape, by the name before them, or as the value of an environment variable."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from rlkl.system.secret_names import Secrecy, is_plain, secrecy_of, words_of

SHAPES = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{20,}",
    "an OpenAI or Anthropic key": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})",
    "a GitLab token": r"\bglpat-[A-Za-z0-9_-]{20,}",
    "a Slack token": r"\bxox[abeprs]-[A-Za-z0-9-]{12,}",
    "an AWS access key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a Google key": r"\bAIza[A-Za-z0-9_-]{35}",
    "a W&B key": r"\bwandb_v1_[A-Za-z0-9_]{20,}",
    "a PyPI token": r"\bpypi-[A-Za-z0-9_-]{40,}",
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"
    r"(?:[\s\S]*?-----END (?:[A-Z]+ )*PRIVATE KEY-----|[\s\S]*)",
    "an address with a password": r"[a-z][a-z0-9+.-]*://[^\s/:@'\"{}$<>]+:[^\s/:@'\"{}$<>]+@",
}
"""Kinds of secrets that can be told by their shape -> regular expressions."""
_SHAPES = {kind: re.compile(pattern) for kind, pattern in SHAPES.items()}
_SECRET_VARIABLE = re.compile(r"(?:^|_)(?:API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS)$")
_SHORTEST = 12
"""Characters of a variable's value that is looked for: a shorter one may be in any text."""


_ASSIGNED = re.compile(
    r"(?<!\w)(?P<name>[A-Za-z][\w-]{0,60})"
    r"(?=[\"']?\s{0,4}[:=]\s{0,4}[\"']?(?:(?:Bearer|Basic)\s+)?(?P<value>[^\s\"'&,;<>]{8,}))"
)
_LONG = 16
"""Characters from which a random-looking value counts although its name does not have to be a secret's."""
_PARAMETER = re.compile(r"[?&#;](?P<name>[^=&#?\s]{1,60})=(?P<value>[^&#\s\"'<>]+)")
_PLACEHOLDER = ("{", "$", "%")
_BEARER = re.compile(r"\bBearer\s+(?P<value>[^\s\"',;]{16,})")
_USER = re.compile(r"://(?P<value>[^\s/:@'\"{}$<>]{16,})@")
_FORTY_DIGITS = re.compile(r"(?<![\w/@.=-])[a-f0-9]{40}(?![\w/-])")
_OF_HASHES = {"revision", "commit", "sha", "hash", "digest", "checksum", "fingerprint", "version"}


class Found(NamedTuple):
    """A secret in a text."""

    kind: str
    start: int
    end: int


def secrets_in(text: str, environment: Mapping[str, str] | None = None) -> Iterator[tuple[str, int]]:
    """Yield the kind of each secret in a text, and the place where it starts; never the secret itself.

    ``environment``: the variables whose values count if their names are those of secrets; by default this process's.
    """
    yield from ((kind, start) for kind, start, _ in _known(text, os.environ if environment is None else environment))


_SWITCHES = ("none", "null", "true", "false", "on", "off", "yes", "no")
"""Values that are no secret under any name: ``auth: none``."""


def secrets_in_setting(name: str, text: str) -> list[Found]:
    """Return the secrets in the value of a setting, in the order of their places; they may overlap.

    Beside those of `secrets_in`, a value is a secret because of the setting's name, or because of a name before it in
    the text, as in ``api_key=...`` and ``Authorization: Bearer ...``.
    """
    secrecy = secrecy_of(name)
    if text.lower() in _SWITCHES:
        return []
    if text and (secrecy is Secrecy.YES or (secrecy is Secrecy.MAYBE and not is_plain(text))):
        kind = "a secret" if secrecy is Secrecy.YES else "a value that looks like a secret"
        return [Found(kind, 0, len(text))]
    found = [*_known(text, os.environ), *_named(text)]
    if not set(words_of(name)[-1:]) & _OF_HASHES:
        found += [Found("forty digits, as a W&B key has", *hit.span()) for hit in _FORTY_DIGITS.finditer(text)]
    return sorted(found, key=lambda one: one.start)


def is_known_secret(text: str) -> bool:
    """Return whether the whole text has the shape of a secret."""
    return any(shape.fullmatch(text) for shape in _SHAPES.values())


def _known(text: str, environment: Mapping[str, str]) -> Iterator[Found]:
    for kind, shape in _SHAPES.items():
        yield from (Found(kind, *hit.span()) for hit in shape.finditer(text))
    for name, value in environment.items():
        if len(value) >= _SHORTEST and _SECRET_VARIABLE.search(name):
            for hit in re.finditer(re.escape(value), text):
                yield Found(f"the value of the environment variable {name}", *hit.span())


def _named(text: str) -> Iterator[Found]:
    """Yield values with the name of a secret before them, if they are no placeholders."""
    for hit in _PARAMETER.finditer(text):
        secrecy, value = secrecy_of(hit["name"]), hit["value"]
        is_key = secrecy is Secrecy.YES or (secrecy is Secrecy.MAYBE and not is_plain(value))
        if is_key and not value.startswith(_PLACEHOLDER):
            yield Found("an address with a key", *hit.span("value"))
    for hit in _ASSIGNED.finditer(text):
        secrecy, value = secrecy_of(hit["name"]), hit["value"]
        is_key = secrecy and not is_plain(value) and (secrecy is Secrecy.YES or len(value) >= _LONG)
        if is_key and not value.startswith(_PLACEHOLDER):
            yield Found("a secret", *hit.span("value"))
    for kind, pattern in (("a bearer token", _BEARER), ("an address with a key", _USER)):
        yield from (Found(kind, *hit.span("value")) for hit in pattern.finditer(text) if not is_plain(hit["value"]))
