"""Taking from a picture what an answer should depend on. Pictures in, pictures of the same size out; RGB.

``patches`` is PAPO's (arXiv 2507.06448): cells of the original picture, counted from its top left corner and before any
resizing, turn black independently. The cells are not those of the vision tower, which sees the picture resized.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

Corruption = Callable[["Picture", np.random.Generator], "Picture"]
"""Makes a corrupted copy; every draw comes from the generator."""
Saliency = Callable[["Picture"], np.ndarray]
"""Measures how much the policy looks at each part of a picture: ``[rows, columns]`` of a grid over it."""


def mask_patches(picture: Picture, generator: np.random.Generator, probability: float, cell: int) -> Picture:
    """Turn each cell black with this probability. A cell is ``cell`` pixels a side, and smaller at the edges."""
    shape = (math.ceil(picture.height / cell), math.ceil(picture.width / cell))
    black = generator.random(shape) < probability
    return blacken(picture, black.repeat(cell, axis=0).repeat(cell, axis=1))


def add_noise(picture: Picture, generator: np.random.Generator, std: float) -> Picture:
    """Add Gaussian noise to every channel; ``std`` is in units of the range from black to white."""
    from PIL import Image as pil

    values = np.asarray(picture) / 255.0
    noisy = np.clip(values + generator.normal(0.0, std, values.shape), 0.0, 1.0)
    return pil.fromarray(np.rint(noisy * 255).astype(np.uint8))


def mask_salient(picture: Picture, saliency: np.ndarray, fraction: float) -> Picture:
    """Turn the ``fraction`` of the grid's cells (rounded down) black that the policy looks at most."""
    black = np.zeros(saliency.size, dtype=bool)
    black[np.argsort(-saliency, axis=None, kind="stable")[: math.floor(fraction * saliency.size)]] = True
    black = black.reshape(saliency.shape)
    rows = np.arange(picture.height) * saliency.shape[0] // picture.height
    columns = np.arange(picture.width) * saliency.shape[1] // picture.width
    return blacken(picture, black[rows][:, columns])


def blacken(picture: Picture, black: np.ndarray | None = None) -> Picture:
    """Turn the pixels black for which ``black`` is true; all if it is left out. ``black`` covers the picture."""
    from PIL import Image as pil

    values = np.asarray(picture).copy()
    values[... if black is None else black[: values.shape[0], : values.shape[1]]] = 0
    return pil.fromarray(values)
