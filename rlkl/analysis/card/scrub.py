"""Remove secrets and local paths from cards and settings files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from rlkl.system.secret_names import Secrecy, deciding_name, secrecy_of, words_of
from rlkl.system.secret_texts import is_known_secret, secrets_in_setting

LEFT_OUT = "(left out)"
_USER_IN_ADDRESS = re.compile(r"(?<=://)[^/?#\s]+@")
_QUERY_OF_ADDRESS = re.compile(r"(://[^\s?#\"'<>]*)(?:\?[^\s\"'<>]*|#[^\s\"'<>]*=[^\s\"'<>]*)")
_ABSOLUTE = re.compile(r"^(?:~|/[^/\s]|\.{1,2}/|[A-Za-z]:[\\/])")
_LONE_PATH = re.compile(r"(?:~[\w.-]*/|/[^/\s]+/|\.{1,2}/|[A-Za-z]:[\\/])\S*")
"""A text that is a path and nothing else. ``/no_think`` is none: no folder is in it."""
_PATH_IN_TEXT = re.compile(
    r"(?<![\w/.~])(?:file:/{0,2}|~[\w.-]*)?/(?:[\w.+@-]+/)+[\w.+@-]+"
    r"|(?<!\w)[A-Za-z]:[\\/](?:[^\\/\s\"']+[\\/])+[^\\/\s\"']*"
)
_STRING = r'"(?:[^"\\]|\\.)*"'
_ENTRY = re.compile(rf"(?P<key>{_STRING})(?P<colon>\s*:\s*)(?P<value>{_STRING})|{_STRING}")
_NAMES_OF_PATHS = {"path", "file", "dir", "directory", "folder", "root", "cache", "dataset", "tokenizer"}


def scrub(value: Any, name: str = "") -> Any:
    """Return plain values without secrets; of a local path only the last part is left.

    ``name``: the key of the value; it may be the name of a secret.
    """
    if isinstance(value, Mapping):
        return {
            scrub_text(key) if isinstance(key, str) else key: scrub(inner, deciding_name(name, str(key), value))
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [scrub(inner, name) for inner in value]
    if isinstance(value, str):
        return scrub_text(value, name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return LEFT_OUT if is_number and secrecy_of(name) is Secrecy.YES else value


def scrub_text(text: str, name: str = "") -> str:
    """Return a text without secrets, local paths, and the user and the query of addresses.

    ``/home/me/rewards.py:score`` becomes ``rewards.py:score``.
    """
    text = _QUERY_OF_ADDRESS.sub(r"\1", _USER_IN_ADDRESS.sub("", text))
    parts, end = [], 0
    for found in secrets_in_setting(name, text):
        if found.end > end:
            parts += [text[end : found.start], LEFT_OUT] if found.start >= end else []
            end = found.end
    text = "".join([*parts, text[end:]])
    return _name(text) if _LONE_PATH.fullmatch(text) else _PATH_IN_TEXT.sub(lambda path: _name(path.group()), text)


def scrub_settings(text: str) -> str:
    """Return the text of a model's settings file in JSON without local paths; all else stays, byte by byte.

    A path is replaced by its last part if its key is one of paths, such as ``_name_or_path``. No key makes a value a
    secret here, because ``eos_token`` and its like are names of tokens. A value that is a known kind of key is left
    out.
    """
    return _ENTRY.sub(_scrubbed_entry, text)


def is_local(name: str) -> bool:
    """Return whether the name of a model or of data is a path rather than a name of the hub or a built-in one."""
    return bool(_ABSOLUTE.match(name)) or name.endswith((".jsonl", ".parquet")) or "\\" in name


def _scrubbed_entry(entry: re.Match[str]) -> str:
    if entry["key"] is None:
        return entry.group()
    key, value = json.loads(entry["key"], strict=False), json.loads(entry["value"], strict=False)
    if is_known_secret(value):
        left = LEFT_OUT
    elif _NAMES_OF_PATHS & set(words_of(key)[-1:]) and _ABSOLUTE.match(value):
        left = _name(value)
    else:
        return entry.group()
    return f"{entry['key']}{entry['colon']}{json.dumps(left, ensure_ascii=False)}"


def _name(path: str) -> str:
    kind = PureWindowsPath if "\\" in path else PurePosixPath
    return kind(path).name or LEFT_OUT
