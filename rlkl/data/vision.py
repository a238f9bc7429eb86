"""The model's own picture processing: how many tokens a picture takes, and the patches that its vision tower reads."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoProcessor

from rlkl.batch import ImageInputs
from rlkl.data.images import open_image
from rlkl.errors import DataError, InputError
from rlkl.recipe.resolved_model import ResolvedModel, read_model
from rlkl.types import Image, Prompt

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_KEPT_BYTES = 1 << 30
"""Patches kept for pictures that come again."""

SUPPORTED = ("qwen2_vl", "qwen2_5_vl")
"""``model_type`` of the vision-language models whose pictures rlkl can place."""


class PictureProcessor:
    """A vision-language model's picture processor. Patches of the pictures used last are kept, up to a gigabyte."""

    def __init__(self, processor: Any, image_token_id: int) -> None:
        self.image_token_id = image_token_id
        """The placeholder id, once for each token of a picture."""
        self.whole = processor
        """The model's processor with its tokenizer, to be saved beside a trained policy."""
        self._processor = processor.image_processor
        self._kept: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()
        self._kept_bytes = 0

    def token_count(self, image: Image) -> int:
        """Return how many tokens the model sees of a picture, without a look at the pixels."""
        return self._processor.get_number_of_image_patches(image.height, image.width) // self.patches_per_token

    @property
    def patches_per_token(self) -> int:
        """Patches that the model merges into one token."""
        return self._processor.merge_size**2

    def patches(self, image: Image) -> tuple[Tensor, Tensor]:
        """Cut one picture into patches ``[P, D]`` float32.

        Return them with the grid ``[3]``: time, height and width in patches.
        """
        if image.key in self._kept:
            self._kept.move_to_end(image.key)
            return self._kept[image.key]
        made = self.process(open_image(image))
        self._kept[image.key] = made
        self._kept_bytes += made[0].nbytes
        while self._kept_bytes > _KEPT_BYTES and len(self._kept) > 1:
            self._kept_bytes -= self._kept.popitem(last=False)[1][0].nbytes
        return made

    def of_prompt(self, prompt: Prompt) -> list[tuple[str, tuple[Tensor, Tensor]]]:
        """Return the prompt's pictures as keys with patches and grid, as `image_inputs` takes them.

        Raises:
            DataError: a picture has another number of tokens than its placeholder was repeated for.
        """
        made = [(image.key, self.patches(image)) for image in prompt.images]
        for number, (image, (_, (_, grid_3))) in enumerate(zip(prompt.images, made, strict=True)):
            seen, announced = int(grid_3.prod()) // self.patches_per_token, self.token_count(image)
            if seen != announced:
                raise DataError(
                    f"{prompt.id}: picture {number + 1} ({image.width} x {image.height} pixels) is {seen} tokens "
                    f"after the model's picture processing, which had announced {announced}; the prompt has "
                    f"{announced} placeholders. Leave the row out, or resize the picture"
                )
        return made

    def process(self, picture: Picture) -> tuple[Tensor, Tensor]:
        """Return the same as `patches`, but keep no result: for a picture that is used once, as a corrupted one."""
        made = self._processor(images=[picture], return_tensors="pt")
        return made["pixel_values"].float(), made["image_grid_thw"][0]


def image_inputs(made: Sequence[Sequence[tuple[str, tuple[Tensor, Tensor]]]]) -> ImageInputs | None:
    """Collect each sequence's pictures, as keys with patches and grid; return None if there is none.

    Equal keys are taken once.
    """
    numbers: dict[str, int] = {}
    pictures: list[tuple[Tensor, Tensor]] = []
    for sequence in made:
        for key, picture in sequence:
            if key not in numbers:
                numbers[key] = len(pictures)
                pictures.append(picture)
    if not pictures:
        return None
    return ImageInputs(
        patches_PD=torch.cat([patches for patches, _ in pictures]),
        grids_I3=torch.stack([grid for _, grid in pictures]),
        images_B=tuple(tuple(numbers[key] for key, _ in sequence) for sequence in made),
    )


def load_picture_processor(
    model: ResolvedModel | str, pixels: tuple[int | None, int | None] = (None, None)
) -> PictureProcessor | None:
    """Load the model's picture processor; return None for a text model. A path is read first.

    ``pixels``: the smallest and largest number of a picture, None for the model's own limits.

    Raises:
        InputError: a vision-language model of a kind that rlkl does not know, or without its processor.
    """
    model = read_model(model) if isinstance(model, str) else model
    if not model.is_multimodal:
        return None
    if model.kind not in SUPPORTED:
        raise InputError(
            f"model.path = {model.path!r} is a vision-language model of type {model.kind}; rlkl knows "
            f"{', '.join(SUPPORTED)}. Take one of these, or a text model"
        )
    try:
        processor = AutoProcessor.from_pretrained(model.path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"model.path = {model.path!r}: its picture processor cannot be loaded ({error}); the folder needs "
            "preprocessor_config.json beside the model"
        ) from error
    sizes: Any = processor.image_processor.size
    for name, value in zip(("shortest_edge", "longest_edge"), pixels, strict=True):
        if value is not None:
            sizes[name] = value
    if sizes["shortest_edge"] > sizes["longest_edge"]:
        raise InputError(
            f"data.min_pixels = {sizes['shortest_edge']} exceeds data.max_pixels = {sizes['longest_edge']} (what is "
            f"left out is as {model.path!r} has it); set both"
        )
    assert model.image_token_id is not None, "every supported kind has one"
    return PictureProcessor(processor, model.image_token_id)
