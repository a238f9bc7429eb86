"""Check the files that a command is asked to write before it computes what goes into them."""

from __future__ import annotations

import os
from pathlib import Path

from rlkl.errors import InputError


def check_out(option: str, path: Path | None) -> None:
    """Raise `InputError` if ``path`` cannot become a file; missing folders above it are made later. None passes.

    ``option``: its name on the command line, for the message.
    """
    if path is None:
        return
    above = next(place for place in path.absolute().parents if place.exists())
    if path.is_dir():
        problem = "it is a folder; name a file in it"
    elif not above.is_dir():
        problem = f"{above} is a file, so it cannot hold others; choose another folder"
    elif not os.access(path if path.exists() else above, os.W_OK):
        problem = f"{path if path.exists() else above} is read-only for you; choose another folder"
    else:
        return
    raise InputError(f"{option} {path} cannot be written: {problem}")
