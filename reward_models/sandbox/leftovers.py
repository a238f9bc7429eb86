"""Measure and remove the files that a program has put on the disk."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterable, Iterator

MOST_FILES = 10_000
"""Files and folders that a program may make."""
_BLOCK = 512
"""st_blocks counts these, whatever the file system's own size."""


class TooMuch(Exception):
    """The program has more on the disk than it may have."""


def check_use(folder: str, processes: Iterable[int], *, most_bytes: int) -> None:
    """Add up what lies below ``folder``, and deleted files that ``processes`` still hold open or mapped.

    Raises `TooMuch` above ``most_bytes`` or `MOST_FILES`, and for a path that is too long to be looked at.
    """
    seen: set[tuple[int, int]] = set()
    used = 0
    for status in itertools.chain(_below(folder), _held(processes, os.stat(folder).st_dev)):
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        used += status.st_blocks * _BLOCK
        if used > most_bytes or len(seen) > MOST_FILES:
            raise TooMuch


def remove_tree(folder: str) -> None:
    """Remove a folder however deep it is and whatever its permissions are.

    Each inner folder's content moves up to ``folder`` before the inner folder goes, so no path gets long and nothing
    recurses. Raises `OSError` when something cannot be removed.
    """
    numbers = itertools.count()
    os.chmod(folder, stat.S_IRWXU)
    while entries := list(os.scandir(folder)):
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            os.chmod(entry.path, stat.S_IRWXU)
            for child in list(os.scandir(entry.path)):
                if child.is_dir(follow_symlinks=False):
                    os.chmod(child.path, stat.S_IRWXU)  # a folder that moves must be writable: its ".." changes
                    os.rename(child.path, _free_name(folder, numbers))
                else:
                    os.unlink(child.path)
            os.rmdir(entry.path)
    os.rmdir(folder)


def _free_name(folder: str, numbers: Iterator[int]) -> str:
    while os.path.lexists(path := os.path.join(folder, str(next(numbers)))):
        pass
    return path


def _below(folder: str) -> Iterator[os.stat_result]:
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        try:
            entries = list(_listed(path))
        except FileNotFoundError:  # removed meanwhile
            continue
        except OSError as error:  # a path longer than the system takes
            raise TooMuch from error
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise TooMuch from error
            if stat.S_ISDIR(status.st_mode):
                waiting.append(entry.path)
            yield status


def _listed(path: str) -> Iterator[os.DirEntry[str]]:
    try:
        return os.scandir(path)
    except PermissionError:  # the program made it unreadable
        os.chmod(path, stat.S_IRWXU)
        return os.scandir(path)


def _held(processes: Iterable[int], device: int) -> Iterator[os.stat_result]:
    """Yield the files without a name on ``device`` that a process has open, or has mapped."""
    for process in processes:
        for kind in ("fd", "map_files"):
            folder = f"/proc/{process}/{kind}"
            try:
                names = os.listdir(folder)
            except OSError:  # ended meanwhile, or another user's: then root asks, or nobody can
                continue
            for name in names:
                try:
                    status = os.stat(f"{folder}/{name}")
                except OSError:
                    continue
                if status.st_dev == device and not status.st_nlink and stat.S_ISREG(status.st_mode):
                    yield status
