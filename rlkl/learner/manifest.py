"""The manifest of a checkpoint: name, size and checksum of each of its files.

The learner may run on another machine than the program that declares a checkpoint complete. Both read the files, and
must see the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

MANIFEST_FILE = "manifest.json"
_THREADS = 4
"""Files that are read at one time: hashing releases Python's lock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedFile:
    """Size and checksum of one file on disk."""

    size: int
    sha256: str


def list_files(folder: Path) -> dict[str, SavedFile]:
    """Sync every file under ``folder`` to disk, read it back, and return their sizes and checksums by relative path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST_FILE)
    with ThreadPoolExecutor(_THREADS) as pool:
        files = pool.map(_read, paths)
        return {path.relative_to(folder).as_posix(): file for path, file in zip(paths, files, strict=True)}


def differences(expected: Mapping[str, SavedFile], seen: Mapping[str, SavedFile]) -> list[str]:
    """Return a sentence for each expected file that is missing or differs."""
    return [
        f"{name} is missing"
        if name not in seen
        else f"{name} has {seen[name].size} bytes, expected {file.size}"
        if seen[name].size != file.size
        else f"{name} has another content than was written"
        for name, file in sorted(expected.items())
        if seen.get(name) != file
    ]


def missing(folder: Path) -> list[str]:
    """Return a sentence for each file of a checkpoint that is missing or has another size; contents are not read."""
    try:
        expected = read_manifest(folder)
    except FileNotFoundError:
        return [
            f"{MANIFEST_FILE} is missing (earlier versions of rlkl wrote none; a new run can start from its policy: "
            f"model.path={folder / 'policy'})"
        ]
    except (OSError, ValueError, TypeError) as error:
        return [f"{MANIFEST_FILE} cannot be read ({error})"]
    found = []
    for name, file in sorted(expected.items()):
        path = folder / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != file.size:
            found.append(f"{name} has {path.stat().st_size} bytes, expected {file.size}")
    return found


def damaged(folder: Path) -> list[str]:
    """Return a sentence for each file of a checkpoint that is missing or has changed; reads every file."""
    return missing(folder) or differences(read_manifest(folder), list_files(folder))


def write_manifest(folder: Path, files: Mapping[str, SavedFile]) -> None:
    """Write the manifest of ``folder`` into it."""
    path = folder / MANIFEST_FILE
    path.write_text(json.dumps({name: asdict(file) for name, file in files.items()}, indent=1) + "\n")
    sync(path)


def read_manifest(folder: Path) -> dict[str, SavedFile]:
    """Return the manifest in ``folder``; raises OSError, ValueError or TypeError if there is no readable one."""
    files = {name: SavedFile(**file) for name, file in json.loads((folder / MANIFEST_FILE).read_text()).items()}
    for name in files:
        if (path := PurePosixPath(name)).is_absolute() or ".." in path.parts:
            raise ValueError(f"it names {name!r}, which is not in the checkpoint")
    return files


def sync(path: Path) -> None:
    """Return once a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> SavedFile:
    sync(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return SavedFile(size=os.fstat(file.fileno()).st_size, sha256=digest)
