"""The list of published tensors, and how they are put one after the other into buckets of bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BUCKET_BYTES = 1 << 30
"""Size of a bucket. Each process holds about two of them during a publish."""

_ALIGNED = 16
"""Tensors start at multiples of so many bytes, so that their bytes can be read in any data type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """A published tensor without its numbers."""

    name: str
    dtype: str
    """For example ``bfloat16``."""
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * getattr(torch, self.dtype).itemsize

    def __str__(self) -> str:
        return f"{self.name} ({self.dtype}, {' x '.join(map(str, self.shape)) or 'one number'})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Tensors that travel together."""

    number: int
    tensors: tuple[Outline, ...]

    @property
    def bytes(self) -> int:
        return sum(_padded(tensor.bytes) for tensor in self.tensors)

    def views(self, buffer_N: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield each tensor by name, as a view of the bucket's bytes."""
        start = 0
        for outline in self.tensors:
            part_N = buffer_N[start : start + outline.bytes]
            yield outline.name, part_N.view(getattr(torch, outline.dtype)).view(outline.shape)
            start += _padded(outline.bytes)

    def __str__(self) -> str:
        return f"bucket {self.number} ({self.tensors[0].name} to {self.tensors[-1].name})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The tensors of a version, in the order in which they travel."""

    version: int
    tensors: tuple[Outline, ...]
    bucket_bytes: int = BUCKET_BYTES

    def buckets(self) -> list[Bucket]:
        """Divide the tensors into buckets. A tensor stays whole; a larger one than a bucket travels alone."""
        parts: list[list[Outline]] = []
        room = 0
        for outline in self.tensors:
            size = _padded(outline.bytes)
            if not parts or size > room:
                parts.append([])
                room = self.bucket_bytes
            parts[-1].append(outline)
            room -= size
        return [Bucket(number=number, tensors=tuple(part)) for number, part in enumerate(parts)]


def _padded(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
