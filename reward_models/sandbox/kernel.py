"""The calls to the Linux kernel that a sandbox needs and Python 3.11 does not have."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from enum import IntFlag

_libc = ctypes.CDLL(None, use_errno=True)

NEW_NAMESPACES = 0x02000000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000
"""Cgroups, host name, System V memory, process ids, network."""
NEW_MOUNTS = 0x00020000
NEW_USERS = 0x10000000

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
_CAPABILITY_VERSION_3 = 0x20080522
_UNMOUNT_LAZILY = 2
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}


class Mount(IntFlag):
    """Flags of mount(2)."""

    READ_ONLY = 0x1
    NO_SET_UID = 0x2
    NO_DEVICES = 0x4
    NO_EXECUTION = 0x8
    REMOUNT = 0x20
    NO_ACCESS_TIME = 0x400
    NO_DIRECTORY_ACCESS_TIME = 0x800
    BIND = 0x1000
    RECURSIVE = 0x4000
    PRIVATE = 0x40000
    RELATIVE_ACCESS_TIME = 0x200000


_LOCKED = {
    os.ST_NOSUID: Mount.NO_SET_UID,
    os.ST_NODEV: Mount.NO_DEVICES,
    os.ST_NOEXEC: Mount.NO_EXECUTION,
    os.ST_NOATIME: Mount.NO_ACCESS_TIME,
    os.ST_NODIRATIME: Mount.NO_DIRECTORY_ACCESS_TIME,
    os.ST_RELATIME: Mount.RELATIVE_ACCESS_TIME,
}
"""Flags that a remount by an ordinary user has to keep if the mount has them."""


def unshare(flags: int) -> None:
    """Leave the namespaces that ``flags`` name for new ones."""
    _check(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    arguments = (source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _check(_libc.mount(*arguments), f"mount {source} at {target}")


def bind_read_only(source: str, target: str) -> None:
    """Show a folder or file a second time, as one that cannot be written."""
    mount(source, target, "", Mount.BIND | Mount.RECURSIVE)
    status = os.statvfs(target)
    kept = Mount(0)
    for bit, flag in _LOCKED.items():
        kept |= flag if status.f_flag & bit else 0
    mount("", target, "", Mount.REMOUNT | Mount.BIND | Mount.READ_ONLY | Mount.NO_SET_UID | Mount.NO_DEVICES | kept)


def change_root(folder: str) -> None:
    """Make a mount point the root of everything, and let go of the old root."""
    os.chdir(folder)
    _check(_libc.syscall(_PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _UNMOUNT_LAZILY), "umount the old root")
    os.chdir("/")


def die_with_parent(signal_number: int) -> None:
    """Have this process sent a signal when the thread that started it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal_number)


def own_its_proc_files() -> None:
    """Let this process write to its files in /proc after a change of user."""
    _prctl(_PR_SET_DUMPABLE, 1)


def adopt_orphans() -> None:
    """Become the parent of each descendant whose own parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def renounce_privileges() -> None:
    """Give up all capabilities; no program that this process starts can gain a privilege."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")


def install_filter(instructions: Sequence[tuple[int, int, int, int]]) -> None:
    """Have the kernel run a BPF program (code, jump if true, jump if false, operand) before each system call."""

    class Instruction(ctypes.Structure):
        _fields_ = (("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("k", ctypes.c_uint32))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("first", ctypes.POINTER(Instruction)))

    array = (Instruction * len(instructions))(*(Instruction(*instruction) for instruction in instructions))
    program = Program(len(instructions), ctypes.cast(array, ctypes.POINTER(Instruction)))
    _check(_libc.syscall(_SECCOMP[os.uname().machine], 1, 0, ctypes.byref(program)), "seccomp")


_SECCOMP = {"x86_64": 317, "aarch64": 277}


def _prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, *(ctypes.c_ulong(number) for number in (value, 0, 0, 0))), f"prctl {option}")


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


# Landlock: what a process may do with files, without namespaces and without privileges.

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_LANDLOCK_NEEDED = 3
"""The version that also refuses to truncate (Linux 6.2)."""
_READING = 1 << 0 | 1 << 2 | 1 << 3
_OF_FILES = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14
_ALL = (1 << 15) - 1
_DEVICE_CONTROL = 1 << 15
_SCOPES = 0b11
"""Abstract sockets and signals of other processes (version 6, Linux 6.12)."""


def landlock_version() -> int:
    """Return the version of the kernel's Landlock; 0 if it has none."""
    return max(0, _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1))


def restrict_files(readable: Sequence[str], writable: Sequence[str]) -> None:
    """Restrict this process to these folders and files from now on; ``readable`` ones may be read and executed."""
    version = landlock_version()
    if version < _LANDLOCK_NEEDED:
        raise OSError(f"this kernel's Landlock has version {version}; {_LANDLOCK_NEEDED} is needed (Linux 6.2)")
    handled = _ALL | (_DEVICE_CONTROL if version >= 5 else 0)
    attributes = (ctypes.c_uint64 * 3)(handled, 0, _SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 8
    ruleset = _libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    _check(ruleset, "landlock_create_ruleset")
    for path, access in [*((path, _READING) for path in readable), *((path, handled) for path in writable)]:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        allowed = access if os.path.isdir(path) else access & _OF_FILES
        rule = allowed.to_bytes(8, "little") + descriptor.to_bytes(4, "little")
        _check(_libc.syscall(_ADD_RULE, ruleset, 1, rule, 0), f"landlock_add_rule {path}")
        os.close(descriptor)
    _check(_libc.syscall(_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)
