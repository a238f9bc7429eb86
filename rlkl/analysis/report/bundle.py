"""The JavaScript of Vega, which draws the charts. It is made once for each version of vl-convert, and then kept."""

from __future__ import annotations

import os
import tempfile
from importlib.metadata import version
from pathlib import Path

from rlkl.errors import InputError
from rlkl.system.cache import cache_folder

_EXPORT = "window.vegaEmbed = vegaEmbed;"


def vega_bundle() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script that fetches nothing."""
    try:
        import vl_convert
    except ImportError as error:
        raise InputError(f"rlkl report needs vl-convert-python ({error}): pip install 'rlkl[report]'") from error
    path = cache_folder() / f"vega-{version('vl-convert-python')}.js"
    if not path.is_file():
        _keep(path, vl_convert.javascript_bundle(_EXPORT).replace("</script", "<\\/script"))
    return path.read_text(encoding="utf-8")


def _keep(path: Path, text: str) -> None:
    """Write the file aside and rename it, so that another process never reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    Path(aside).replace(path)
