"""The pictures of samples, as files under ``images`` in the run folder that the sample records name.

They are not under ``samples``: readers that take that folder as one parquet table would stumble over them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlkl.types import Image, RolloutGroup

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

PictureColumns = Mapping[str, Sequence[Sequence[str] | None]]
"""Paths from the run folder, by column name, an entry a rollout, None where no picture was kept."""

CLEAN, CORRUPTED = "images", "corrupted_images"
_FOLDER = Path("images")
_GAP = 8
"""Pixels between pictures that are shown side by side."""


def save_pictures(
    run_dir: Path, groups: Sequence[RolloutGroup], corrupted: Mapping[int, Sequence[Image]], *, kept: int
) -> dict[str, list[list[str] | None]]:
    """Write the pictures of the first ``kept`` rollouts, each different one once; no column without pictures.

    ``corrupted``: the corrupted pictures of a group by its number, where the rule made any.
    """
    if not any(group.prompt.images for group in groups):
        return {}
    columns: dict[str, list[list[str] | None]] = {CLEAN: []} | ({CORRUPTED: []} if corrupted else {})
    for number, group in enumerate(groups):
        for _ in group.rollouts:
            wanted = len(columns[CLEAN]) < kept
            for name, images in ((CLEAN, group.prompt.images), (CORRUPTED, corrupted.get(number))):
                if name in columns:
                    columns[name].append([_save(run_dir, image) for image in images] if wanted and images else None)
    return columns


def side_by_side(run_dir: Path, paths: Sequence[str]) -> Picture | None:
    """The pictures at these paths in one row, on white; None for none."""
    from PIL import Image as pil

    pictures = [pil.open(run_dir / path).convert("RGB") for path in paths]
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
    """Of the formats that `rlkl.data.images` keeps."""
    if data.startswith(b"\xff\xd8"):
        return ".jpg"
    return ".webp" if data.startswith(b"RIFF") else ".png"
