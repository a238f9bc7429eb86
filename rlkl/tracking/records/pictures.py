"""The pictures of samples, as files under ``images`` in the run folder that the sample records name.

They are not under ``samples``: readers that take that folder as one parquet table would stumble over them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlkl.errors import InputError
from rlkl.types import Image, RolloutGroup

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

PictureColumns = Mapping[str, Sequence[Sequence[str] | None]]
"""Paths from the run folder, by column name, an entry a rollout, None where no picture was kept."""

IMAGES = "images"
"""The column of the prompts' own pictures; those of a view are in ``<view>_images``."""
_FOLDER = Path("images")
_GAP = 8
"""Pixels between pictures that are shown side by side."""


def save_pictures(
    run_dir: Path, groups: Sequence[RolloutGroup], views: Mapping[str, Mapping[int, Sequence[Image]]], *, kept: int
) -> dict[str, list[list[str] | None]]:
    """Write the pictures of the first ``kept`` rollouts, each different one once; no column without pictures.

    ``views``: the pictures that the rule changed, by view and number of the group.
    """
    if not any(group.prompt.images for group in groups):
        return {}
    own = {number: group.prompt.images for number, group in enumerate(groups)}
    by_column = {IMAGES: own} | {f"{view}_{IMAGES}": pictures for view, pictures in views.items() if pictures}
    columns: dict[str, list[list[str] | None]] = {name: [] for name in by_column}
    for number, group in enumerate(groups):
        for _ in group.rollouts:
            wanted = len(columns[IMAGES]) < kept
            for name, pictures in by_column.items():
                images = pictures.get(number)
                columns[name].append([_save(run_dir, image) for image in images] if wanted and images else None)
    return columns


def picture_columns(names: Sequence[str]) -> list[str]:
    """Return the columns of pictures among ``names``: the prompts' own first, then those of views by name."""
    return sorted(
        (name for name in names if name == IMAGES or name.endswith(f"_{IMAGES}")), key=lambda n: (n != IMAGES, n)
    )


def picture_path(run_dir: Path, recorded: str) -> Path:
    """Return the file of a picture that a sample record names.

    Raises `InputError` if it is not in the run folder: a record that somebody else wrote could name any file of this
    machine, and reports and W&B would show it.
    """
    path = run_dir / recorded
    if not path.resolve().is_relative_to(run_dir.resolve()):
        raise InputError(f"the sample records of {run_dir} name the picture {recorded!r}, which is not in that folder")
    return path


def side_by_side(run_dir: Path, paths: Sequence[str]) -> Picture | None:
    """Join the pictures at these paths in one row, on white; return None for none."""
    from PIL import Image as pil

    pictures = [pil.open(picture_path(run_dir, path)).convert("RGB") for path in paths]
    if not pictures:
        return None
    width = sum(picture.width for picture in pictures) + _GAP * (len(pictures) - 1)
    row = pil.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + _GAP
    return row


def _save(run_dir: Path, image: Image) -> str:
    path = _FOLDER / f"{image.key}{_suffix(image.data)}"
    if not (run_dir / path).exists():
        (run_dir / _FOLDER).mkdir(parents=True, exist_ok=True)
        aside = run_dir / _FOLDER / f".{path.name}.tmp"
        aside.write_bytes(image.data)
        aside.replace(run_dir / path)
    return str(path)


def _suffix(data: bytes) -> str:
    """Return the file suffix of a format that `rlkl.data.images` keeps."""
    if data.startswith(b"\xff\xd8"):
        return ".jpg"
    return ".webp" if data.startswith(b"RIFF") else ".png"
