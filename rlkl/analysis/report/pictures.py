"""The pictures of samples: in the page itself as long as there is room, else as links to the run folder."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from urllib.parse import quote

ROOM = 8 * 2**20
"""Bytes of pictures that a page holds."""
_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}


class PictureStore:
    """Gives each picture a number and an address that the page can show."""

    def __init__(self, page_folder: Path, *, room: int = ROOM) -> None:
        self._folder, self._room = page_folder, room
        self._numbers: dict[Path, int] = {}
        self.sources: list[str] = []

    def number(self, path: Path) -> int:
        """Return the number of the picture at ``path``; an address for it is in `sources`."""
        if path not in self._numbers:
            self._numbers[path] = len(self.sources)
            self.sources.append(self._source(path))
        return self._numbers[path]

    def _source(self, path: Path) -> str:
        kind = _TYPES.get(path.suffix)
        if kind is not None and path.is_file() and path.stat().st_size <= self._room:
            data = path.read_bytes()
            self._room -= len(data)
            return f"data:{kind};base64,{base64.b64encode(data).decode()}"
        return quote(Path(os.path.relpath(path, self._folder)).as_posix())
