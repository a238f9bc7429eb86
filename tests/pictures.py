"""Prompts with pictures for the tiny Qwen2.5-VL of `tests.models`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image as pil

from rlkl.data.images import encode_image
from rlkl.data.vision import PictureProcessor, load_picture_processor
from rlkl.tasks.characters import character_tokenizer
from rlkl.types import Completion, Example, Image, Prompt, Rollout

START, PAD, END = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"


def picture(width: int, height: int, seed: int) -> Image:
    """Noise, no pixel of which is black."""
    values = np.random.default_rng(seed).integers(1, 256, (height, width, 3), dtype=np.uint8)
    return encode_image(pil.fromarray(values))


def processor_of(model_path: str | Path, *, config_from: Path | None = None) -> PictureProcessor:
    """``config_from``: a model's folder whose ``config.json`` is copied beside the processor first."""
    if config_from is not None:
        (Path(model_path) / "config.json").write_text((config_from / "config.json").read_text())
    pictures = load_picture_processor(str(model_path))
    assert pictures is not None
    return pictures


def prompt_with(pictures: PictureProcessor, images: Sequence[Image], text: str = "1+1=", *, name: str = "p") -> Prompt:
    """The pictures, then the text, as `load_prompts` would make it."""
    tokenizer = character_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [START, PAD, END, "<|video_pad|>"]})
    seen = "".join(f"{START}{PAD * pictures.token_count(image)}{END}" for image in images)
    return Prompt(id=name, text=text, token_ids=tuple(tokenizer.encode(seen + text)), images=tuple(images))


def example(prompt: Prompt, *, group: int, sample: int = 0, length: int = 3, draw: int = 0) -> Example:
    """A completion of random characters, rewarded by its sample number."""
    generator = torch.Generator().manual_seed(97 * group + sample)
    completion = Completion(
        token_ids=tuple(torch.randint(3, 60, (length,), generator=generator).tolist()),
        logprobs=(-2.0,) * length,
        finish_reason="stop",
    )
    return Example(
        prompt=prompt,
        rollout=Rollout(
            sample_index=sample,
            completion=completion,
            reward=float(sample),
            components={},
            weights_version=0,
            draw=draw,
        ),
        group=group,
    )
