"""Sandboxes for tests, one of each kind that this machine can make."""

from __future__ import annotations

import os
import sys

from reward_models.sandbox import Limits, Sandbox

SYSTEM_PYTHON = "/usr/bin/python3"


def python_for_everyone() -> str | None:
    """An interpreter that users without privileges can start; None means this one."""
    if os.geteuid() != 0:
        return None
    folders = os.path.realpath(sys.executable).split("/")[1:-1]
    paths = ["/" + "/".join(folders[: depth + 1]) for depth in range(len(folders))]
    return None if all(os.stat(path).st_mode & 0o5 == 0o5 for path in paths) else SYSTEM_PYTHON


def make_sandbox(isolation: str, **limits: float) -> Sandbox:
    python = python_for_everyone() if isolation == "process" else None
    values = {"wall_s": 60.0, "memory_mb": 256, "disk_mb": 8, "file_mb": 8, "output_kb": 16, **limits}
    return Sandbox(isolation=isolation, python=python, limits=Limits(**values))  # pyright: ignore[reportArgumentType]
