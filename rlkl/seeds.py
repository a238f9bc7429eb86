"""Seeds derived by hashing, so that no draw depends on the order in which draws happen."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, purpose: str, *parts: int | str) -> int:
    """Derive a 63-bit seed for one draw from the recipe's seed, the draw's purpose, and its place in the run.

    >>> derive_seed(0, "rollout", 3, "row-7", 1) == derive_seed(0, "rollout", 3, "row-7", 1)
    True
    """
    text = "\x1f".join([str(seed), purpose, *(f"{type(part).__name__}:{part}" for part in parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
