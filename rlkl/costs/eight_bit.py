"""Moments of 8 bits (``learner.optimizer: adamw_8bit``): who gets them, and their bytes. No torch here."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

BLOCK = 256
"""Numbers that share a scale (bitsandbytes)."""
FEWEST = 4096
"""Smaller parameters have moments of 32 bits."""
BYTES, WHOLE_BYTES = 2 + 8 / BLOCK, 8.0
"""Bytes of both moments of a parameter in 8 and in 32 bits."""
_EMBEDDING = re.compile(r"embed|\bwte\b|\bwpe\b")


def in_blocks(name: str, shape: Sequence[int]) -> bool:
    """Return whether a parameter has moments of 8 bits.

    Its last dimension must be of whole blocks. Embeddings have 32 bits: their gradients differ most from row to row.
    """
    return len(shape) >= 2 and math.prod(shape) >= FEWEST and shape[-1] % BLOCK == 0 and not _EMBEDDING.search(name)
