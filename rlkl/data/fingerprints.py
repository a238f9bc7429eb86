"""Hashes of column values that stay the same from process to process, for any value of a JSON or parquet file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any


def column_fingerprints(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Hash the values of each column, rows in order. A null is not an absent value; the order of keys is ignored."""
    rows = list(rows)
    names = sorted({name for row in rows for name in row})
    digests = {name: hashlib.blake2b(digest_size=16) for name in names}
    for row in rows:
        for name, digest in digests.items():
            digest.update(f"{_text(row[name]) if name in row else ''}\n".encode())
    return {name: digest.hexdigest() for name, digest in digests.items()}


def _text(value: Any) -> str:
    """Write a value as one line of JSON in ASCII. Types that JSON lacks are written with their name."""
    try:
        return json.dumps(value, sort_keys=True, default=_with_type)
    except TypeError:  # keys that are not text, or of several types
        return json.dumps(_with_pairs(value), sort_keys=True, default=_with_type)


def _with_pairs(value: Any) -> Any:
    """Replace mappings by sorted lists of pairs."""
    if isinstance(value, Mapping):
        return ["mapping", sorted(_text([key, _with_pairs(inner)]) for key, inner in value.items())]
    if isinstance(value, list | tuple):
        return [_with_pairs(inner) for inner in value]
    return value


def _with_type(value: Any) -> Any:
    """Write bytes, dates, decimals, numpy values and pictures with their type.

    For any other object return the type alone.
    """
    kind = type(value).__name__
    if isinstance(value, bytes | bytearray | memoryview):
        return [kind, hashlib.blake2b(value, digest_size=16).hexdigest()]
    if hasattr(value, "isoformat"):
        return [kind, value.isoformat()]
    if hasattr(value, "tolist"):  # numpy, torch
        return [kind, str(getattr(value, "dtype", "")), value.tolist()]
    if hasattr(value, "tobytes"):  # PIL
        return [kind, value.mode, value.size, hashlib.blake2b(value.tobytes(), digest_size=16).hexdigest()]
    if isinstance(value, set | frozenset):
        return [kind, sorted(map(_text, value))]
    if type(value).__str__ is not object.__str__ or type(value).__repr__ is not object.__repr__:
        text = str(value)
        return [kind, text if " at 0x" not in text else ""]
    return [kind]
