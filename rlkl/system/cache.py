"""The folder for files that rlkl can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder for files that rlkl can make again: ``$RLKL_CACHE``, else ``~/.cache/rlkl``."""
    return Path(os.environ.get("RLKL_CACHE") or Path.home() / ".cache" / "rlkl")
