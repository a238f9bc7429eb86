"""Find the files that a Python interpreter needs to start."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from dataclasses import dataclass

from rlkl.errors import RewardError

_DEADLINE_S = 60.0
_DESCRIBE = """
import json, sys, sysconfig
base = getattr(sys, "_base_executable", None) or sys.executable
paths = sysconfig.get_paths()
print(json.dumps({
    "executable": sys.executable, "base_executable": base,
    "prefix": sys.prefix, "base_prefixes": [sys.base_prefix, sys.base_exec_prefix],
    "library": [paths["stdlib"], paths["platstdlib"]], "packages": [paths["purelib"], paths["platlib"]],
}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """The command that starts an interpreter, and the folders that its program may read besides the system's."""

    command: str
    readable: tuple[str, ...]


@functools.lru_cache
def find_interpreter(python: str, *, packages: bool) -> Interpreter:
    """Ask the interpreter at ``python`` where its files are.

    Without ``packages`` it is the base interpreter of a virtual environment. Only its library folders and its own file
    are readable: its prefix may be a home folder, whose other files are nobody's business.

    Raises `RewardError` when it cannot be started.
    """
    try:
        answer = subprocess.run(
            [python, "-I", "-c", _DESCRIBE], capture_output=True, text=True, timeout=_DEADLINE_S, check=True
        )
        found = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise RewardError(
            f"the sandbox could not be made: the interpreter {python} does not start ({error})"
        ) from error
    base = os.path.realpath(found["base_executable"])
    readable = [base, *found["library"]]
    for prefix in found["base_prefixes"]:
        readable += [os.path.join(prefix, folder) for folder in dict.fromkeys(("lib", sys.platlibdir))]
    if not packages:
        return Interpreter(command=base, readable=_existing(readable))
    executable = found["executable"]
    readable += [executable, *found["packages"], os.path.join(found["prefix"], "pyvenv.cfg")]
    return Interpreter(command=executable, readable=_existing([*_links_of(executable), *readable]))


def _links_of(path: str) -> list[str]:
    """List the links that lead from ``path`` to its file: each must exist in a new root."""
    links = []
    while os.path.islink(path):
        links.append(path)
        path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
    return [*links, path]


def _existing(paths: list[str]) -> tuple[str, ...]:
    return tuple(path for path in dict.fromkeys(paths) if os.path.lexists(path))
