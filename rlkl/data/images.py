"""Pictures from whatever a data set holds, brought to one form: a file whose pixels are RGB."""

from __future__ import annotations

import base64
import hashlib
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkl.types import Image

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_KEPT_FORMATS = ("PNG", "JPEG", "WEBP")
"""Files of these formats stay as they are when their pixels are RGB already; others become PNG."""


class BadImage(ValueError):
    """A value is no picture; the message says why."""


def read_image(value: Any, folder: Path) -> Image:
    """Read a picture from a PIL image, encoded bytes, ``{"bytes": ..., "path": ...}``, a path, or base64 text.

    Paths count from ``folder``. Palettes, single bits, CMYK and 16 bits become RGB; transparent
    pixels lie on white; a camera's rotation mark is obeyed.

    Raises:
        BadImage: the value is none of these, or does not decode whole.
    """
    from PIL import Image as pil

    if isinstance(value, pil.Image):
        return _encoded(_rgb(value))
    data = _bytes_of(value, folder)
    picture = _decoded(data)
    rgb = _rgb(picture)
    if rgb is picture and picture.format in _KEPT_FORMATS:
        return _image(data, rgb)
    return _encoded(rgb)


def open_image(image: Image) -> Picture:
    """Decode the picture's pixels, RGB."""
    return _rgb(_decoded(image.data))


def encode_image(picture: Picture) -> Image:
    """Encode an RGB picture as an `Image`, without loss."""
    return _encoded(picture)


def _bytes_of(value: Any, folder: Path) -> bytes:
    if isinstance(value, dict):
        if value.get("bytes"):
            return _bytes_of(value["bytes"], folder)
        if value.get("path"):
            return _bytes_of(value["path"], folder)
        raise BadImage("has neither 'bytes' nor 'path'")
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str) and value.startswith("data:"):
        return _from_base64(value.partition(",")[2])
    if isinstance(value, str | Path):
        return _read_file(str(value), folder)
    raise BadImage(f"is {type(value).__name__}; expected bytes, a path, base64 text, or a dict with 'bytes' or 'path'")


def _read_file(text: str, folder: Path) -> bytes:
    """Read a path if there is such a file; else decode the text as base64."""
    try:
        return (folder / text).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null byte; a long base64 text is no file name either
        if Path(text[:4096]).suffix or len(text) < 64:
            raise BadImage(f"the file '{text[:200]}' cannot be read ({error})") from error
        return _from_base64(text)


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:  # also of letters that are not ASCII
        raise BadImage(f"is neither a file nor base64 text ({error})") from error


def _decoded(data: bytes) -> Picture:
    from PIL import Image as pil

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pil.DecompressionBombWarning)
            picture = pil.open(io.BytesIO(data))
            picture.load()
    except (OSError, ValueError, SyntaxError, EOFError, pil.DecompressionBombError) as error:
        raise BadImage(f"does not decode ({error})") from error
    return picture


def _rgb(picture: Picture) -> Picture:
    """Return the picture upright and as RGB; unchanged if it already is."""
    from PIL import Image as pil
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(picture) if picture.getexif().get(0x0112, 1) != 1 else picture
    if upright.mode == "RGB" and "transparency" not in upright.info:
        return upright
    if upright.mode.startswith("I") or upright.mode == "F":
        return _from_wide(upright)
    if upright.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in upright.info:
        layer = upright.convert("RGBA")
        white = pil.new("RGBA", layer.size, "white")
        return pil.alpha_composite(white, layer).convert("RGB")
    return upright.convert("RGB")


def _from_wide(picture: Picture) -> Picture:
    """Convert grey values of 16 bits or more, or from 0 to 1. PIL's own conversion cuts them off at 255."""
    import numpy as np
    from PIL import Image as pil

    values = np.asarray(picture).astype(np.float64)
    if not np.isfinite(values).all():
        raise BadImage("has pixels that are no numbers")
    if picture.mode == "F":
        top = 1.0 if values.max() <= 1 else 255.0
    else:
        top = 65535.0 if picture.mode.startswith("I;16") or values.max() > 255 else 255.0
    return pil.fromarray(np.rint(np.clip(values / top, 0, 1) * 255).astype(np.uint8), "L").convert("RGB")


def _encoded(picture: Picture) -> Image:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return _image(buffer.getvalue(), picture)


def _image(data: bytes, picture: Picture) -> Image:
    return Image(
        data=data,
        width=picture.width,
        height=picture.height,
        key=hashlib.blake2b(data, digest_size=16).hexdigest(),
    )
