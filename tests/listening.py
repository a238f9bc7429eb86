"""The addresses at which programs of this machine listen, as Linux lists them."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Collection
from pathlib import Path

_LISTENS = "0A"


def listening_at(port: int) -> set[str]:
    """Return the addresses at which something listens on ``port``."""
    return {address for address, found, _ in _sockets() if found == port}


def listening_of(processes: Collection[int]) -> set[tuple[str, int]]:
    """Return address and port of each socket at which one of these processes listens."""
    held = {inode for process in processes for inode in _inodes(process)}
    return {(address, port) for address, port, inode in _sockets() if inode in held}


def descendants() -> set[int]:
    """Return the ids of this process and of all that it has started, directly or not."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it has ended meanwhile
                continue
    found = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _sockets() -> list[tuple[str, int, str]]:
    """List address, port and inode of all TCP sockets that listen."""
    found = []
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            address, _, port = words[1].partition(":")
            if words[3] == _LISTENS:
                raw = bytes.fromhex(address)
                if sys.byteorder == "little":  # each four bytes are one number of the machine
                    raw = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
                found.append((socket.inet_ntop(family, raw), int(port, 16), words[9]))
    return found


def _inodes(process: int) -> set[str]:
    try:
        links = [os.readlink(path) for path in Path(f"/proc/{process}/fd").iterdir()]
    except OSError:  # it has ended meanwhile
        return set()
    return {link.removeprefix("socket:[").rstrip("]") for link in links if link.startswith("socket:[")}
