"""Corrupted pictures: papers/papo.md section 9, property 11, and the alternatives to random patches."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from rlkl.updates.papo.corruption import add_noise, blacken, mask_patches, mask_salient

CELL = 14


def picture(width: int = 100, height: int = 45) -> Image.Image:
    """No pixel is black, so a black one was blackened."""
    values = np.random.default_rng(0).integers(1, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def cells_of(width: int, height: int) -> list[tuple[slice, slice]]:
    return [
        (slice(top, min(top + CELL, height)), slice(left, min(left + CELL, width)))
        for top in range(0, height, CELL)
        for left in range(0, width, CELL)
    ]


def test_cells_are_black_or_untouched_and_edges_are_cells_too():
    before = picture()
    original = np.asarray(before).copy()

    after = mask_patches(before, generator(), 0.6, CELL)

    assert (after.mode, after.size) == ("RGB", before.size)
    assert np.array_equal(np.asarray(before), original), "the input is left alone"
    values = np.asarray(after)
    states = []
    for rows, columns in cells_of(*before.size):
        black = bool((values[rows, columns] == 0).all())
        assert black or np.array_equal(values[rows, columns], original[rows, columns])
        states.append(black)
    assert len(states) == math.ceil(100 / CELL) * math.ceil(45 / CELL)
    assert 0 < sum(states) < len(states)
    edge = [black for black, (_, columns) in zip(states, cells_of(100, 45), strict=True) if columns.stop == 100]
    assert len(edge) == 4, "100 is no multiple of 14: the cells at the right edge are narrower"


@pytest.mark.parametrize(("probability", "black"), [(0.0, 0.0), (1.0, 1.0)])
def test_the_ends_are_the_same_picture_and_all_black(probability: float, black: float):
    after = np.asarray(mask_patches(picture(), generator(), probability, CELL))
    assert (after == 0).mean() == black
    if not black:
        assert np.array_equal(after, np.asarray(picture()))


def test_the_number_of_black_cells_is_binomial():
    counts = []
    for seed in range(200):
        after = np.asarray(mask_patches(picture(140, 140), generator(seed), 0.6, CELL))
        counts.append(sum(bool((after[cell] == 0).all()) for cell in cells_of(140, 140)))
    assert np.mean(counts) == pytest.approx(60, abs=4 * math.sqrt(24 / 200))  # four standard errors
    assert np.var(counts) == pytest.approx(24, rel=0.45), "an exact count would have no variance"


def test_the_seed_alone_decides():
    one, same, other = (mask_patches(picture(), generator(seed), 0.6, CELL).tobytes() for seed in (3, 3, 4))
    assert one == same
    assert one != other


def test_noise_keeps_the_size_and_moves_pixels_by_its_deviation():
    grey = Image.new("RGB", (200, 200), (128, 128, 128))
    after = np.asarray(add_noise(grey, generator(), 0.1)).astype(float)
    assert after.shape == (200, 200, 3)
    assert (after - 128).std() == pytest.approx(25.5, rel=0.02)
    assert np.array_equal(np.asarray(add_noise(picture(), generator(), 0.0)), np.asarray(picture()))


def test_black_is_all_black():
    assert not np.asarray(blacken(picture())).any()
    assert blacken(picture()).size == picture().size


def test_the_most_salient_cells_turn_black():
    saliency = np.array([[0.1, 0.9, 0.2, 0.0], [0.5, 0.3, 0.8, 0.4]])
    before = picture(80, 40)

    after = np.asarray(mask_salient(before, saliency, 0.5))

    black = [bool((after[r * 20 : r * 20 + 20, c * 20 : c * 20 + 20] == 0).all()) for r in range(2) for c in range(4)]
    assert black == [False, True, False, False, True, False, True, True], "the four above the median"
    kept = after.any(axis=2)
    assert np.array_equal(after[kept], np.asarray(before)[kept])


@pytest.mark.parametrize(("fraction", "count"), [(0.0, 0), (0.49, 3), (1.0, 8)])
def test_the_share_of_salient_cells_is_rounded_down(fraction: float, count: int):
    after = np.asarray(mask_salient(picture(80, 40), np.arange(8.0).reshape(2, 4), fraction))
    assert (~after.any(axis=2)).sum() == count * 400
