"""Make corrupted pictures for a batch: one for each picture and draw of a prompt, shared by its rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from rlkl.batch import Batch
from rlkl.data.corruption import Corruption, Saliency, add_noise, blacken, mask_patches, mask_salient
from rlkl.data.images import encode_image, open_image
from rlkl.data.vision import PictureProcessor, image_inputs
from rlkl.seeds import derive_seed
from rlkl.types import Example, Image
from rlkl.updates.settings import CorruptionSettings


def build_corruption(settings: CorruptionSettings, saliency: Saliency | None = None) -> Corruption:
    """Return the corruption that ``settings`` describe. Only the kind ``saliency`` needs ``saliency``."""
    match settings.kind:
        case "patches":
            return lambda picture, generator: mask_patches(picture, generator, settings.fraction, settings.cell)
        case "black":
            return lambda picture, generator: blacken(picture)
        case "noise":
            return lambda picture, generator: add_noise(picture, generator, settings.noise_std)
        case "saliency":
            assert saliency is not None, "the learner passes the policy's attention"
            return lambda picture, generator: mask_salient(picture, saliency(picture), settings.fraction)


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrupted:
    """A batch with its corrupted pictures, and these pictures by group, for people to look at."""

    batch: Batch
    pictures: dict[int, tuple[Image, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrupter:
    """Corrupts pictures by the recipe's settings; the seed of each draw derives from the run's seed."""

    settings: CorruptionSettings
    pictures: PictureProcessor
    seed: int
    saliency: Saliency | None = None

    def corrupt(self, batch: Batch, examples: Sequence[Example]) -> Corrupted:
        """Add corrupted pictures to ``batch``, which was packed from ``examples``; mark the sequences that have one."""
        by_group: dict[int, tuple[Image, ...]] = {}
        for example in examples:
            if example.prompt.images and example.group not in by_group:
                by_group[example.group] = self._corrupted(example)
        made = {
            group: [(image.key, self.pictures.process(open_image(image))) for image in images]
            for group, images in by_group.items()
        }
        return Corrupted(
            batch=replace(
                batch,
                corrupted_B=torch.tensor([example.group in by_group for example in examples]),
                corrupted_images=image_inputs([made.get(example.group, []) for example in examples]),
            ).recounted(),
            pictures=by_group,
        )

    def _corrupted(self, example: Example) -> tuple[Image, ...]:
        corrupt = build_corruption(self.settings, self.saliency)
        prompt, draw = example.prompt, example.rollout.draw
        return tuple(
            encode_image(
                corrupt(
                    open_image(image),
                    np.random.default_rng(derive_seed(self.seed, "corruption", draw, prompt.id, number)),
                )
            )
            for number, image in enumerate(prompt.images)
        )
