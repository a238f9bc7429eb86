"""Take from a picture what an answer should depend on. Pictures in, pictures of the same size out; RGB.

``patches`` is PAPO's (arXiv 2507.06448): cells of the original picture, counted from its top left corner and before any
resizing, turn black independently. The cells are not those of the vision tower, which sees the picture resized.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from rlkl.updates.papo.settings import CorruptionSettings

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from rlkl.updates.base import Attention


def corrupt(picture: Picture, settings: CorruptionSettings, *, seed: int, attention: Attention) -> Picture:
    """Return a copy corrupted as ``settings`` describe; only the kind ``saliency`` calls ``attention``."""
    generator = np.random.default_rng(seed)
    match settings.kind:
        case "patches":
            return mask_patches(picture, generator, settings.fraction, settings.cell)
        case "black":
            return blacken(picture)
        case "noise":
            return add_noise(picture, generator, settings.noise_std)
        case "saliency":
            return mask_salient(picture, attention(picture), settings.fraction)


def mask_patches(picture: Picture, generator: np.random.Generator, probability: float, cell: int) -> Picture:
    """Turn each cell of ``cell`` pixels a side, cut ones at the edges too, black with this probability."""
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
    """Turn the ``fraction`` of the grid's cells (rounded down) that are looked at most black."""
    black = np.zeros(saliency.size, dtype=bool)
    black[np.argsort(-saliency, axis=None, kind="stable")[: math.floor(fraction * saliency.size)]] = True
    black = black.reshape(saliency.shape)
    rows = np.arange(picture.height) * saliency.shape[0] // picture.height
    columns = np.arange(picture.width) * saliency.shape[1] // picture.width
    return blacken(picture, black[rows][:, columns])


def blacken(picture: Picture, black: np.ndarray | None = None) -> Picture:
    """Turn the pixels in ``black`` black, an array at least as large as the picture; all pixels without it."""
    from PIL import Image as pil

    values = np.asarray(picture).copy()
    values[... if black is None else black[: values.shape[0], : values.shape[1]]] = 0
    return pil.fromarray(values)
