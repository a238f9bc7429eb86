"""A seccomp filter of the system calls that a sandboxed program may not make.

It takes away what programs that read, compute and write never need: the network, other processes, mounts, namespaces,
kernel keys, memory that no limit counts (memfd), and the parts of the kernel in which most ways out were found. Refused
calls answer EPERM.
"""

from __future__ import annotations

import errno
import os

_X86_64, _AARCH64 = "x86_64", "aarch64"
_ARCHITECTURES = {_X86_64: 0xC000003E, _AARCH64: 0xC00000B7}
"""As the kernel's audit names them."""

_ALWAYS = {
    _X86_64: {
        "socket": 41, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "mount": 165, "umount2": 166,
        "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308, "swapon": 167, "add_key": 248,
        "request_key": 249, "keyctl": 250, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "kexec_load": 246,
        "init_module": 175, "finit_module": 313, "open_by_handle_at": 304, "shmget": 29, "msgget": 68, "semget": 64,
        "mq_open": 240, "memfd_create": 319,
    },
    _AARCH64: {
        "socket": 198, "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "mount": 40, "umount2": 39,
        "pivot_root": 41, "chroot": 51, "unshare": 97, "setns": 268, "swapon": 224, "add_key": 217,
        "request_key": 218, "keyctl": 219, "bpf": 280, "perf_event_open": 241, "userfaultfd": 282, "kexec_load": 104,
        "init_module": 105, "finit_module": 273, "open_by_handle_at": 265, "shmget": 194, "msgget": 186,
        "semget": 190, "mq_open": 180, "memfd_create": 279,
    },
}  # fmt: skip
_ALWAYS_SAME = {
    "io_uring_setup": 425, "io_uring_enter": 426, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsmount": 432,
    "pidfd_getfd": 438, "memfd_secret": 447,
}  # fmt: skip
"""Newer calls have one number everywhere."""

_WITHOUT_NAMESPACES = {
    _X86_64: {
        "chmod": 90, "fchmod": 91, "fchmodat": 268, "chown": 92, "fchown": 93, "lchown": 94, "fchownat": 260,
        "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197, "lremovexattr": 198,
        "fremovexattr": 199, "utime": 132, "utimes": 235, "futimesat": 261, "utimensat": 280, "tkill": 200,
        "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297, "setpriority": 141, "ioprio_set": 251,
        "sched_setparam": 142, "sched_setscheduler": 144, "sched_setaffinity": 203, "sched_setattr": 314,
        "migrate_pages": 256, "move_pages": 279, "kcmp": 312, "sendmsg": 46, "sendmmsg": 307,
    },
    _AARCH64: {
        "fchmod": 52, "fchmodat": 53, "fchown": 55, "fchownat": 54, "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7,
        "removexattr": 14, "lremovexattr": 15, "fremovexattr": 16, "utimensat": 88, "tkill": 130,
        "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240, "setpriority": 140, "ioprio_set": 30,
        "sched_setparam": 118, "sched_setscheduler": 119, "sched_setaffinity": 122, "sched_setattr": 274,
        "migrate_pages": 238, "move_pages": 239, "kcmp": 272, "sendmsg": 211, "sendmmsg": 269,
    },
}  # fmt: skip
"""Beyond Landlock: what belongs to a file but is not its content, what is done to other processes, and messages that
carry open files, which would hide them from the guard's count."""
_WITHOUT_NAMESPACES_SAME = {
    "fchmodat2": 452, "setxattrat": 463, "removexattrat": 466, "pidfd_send_signal": 424, "process_madvise": 440,
}  # fmt: skip

_SELF_ONLY = {
    _X86_64: {"kill": 62, "tgkill": 234, "prlimit64": 302},
    _AARCH64: {"kill": 129, "tgkill": 131, "prlimit64": 261},
}
"""Calls whose first argument says which process; without namespaces it has to be the caller (0 for the last)."""

_CLONE = {_X86_64: 56, _AARCH64: 220}
_CLONE3 = 435
_NEW_NAMESPACE = 0x7E020000
_FIRST_X32 = 0x40000000

_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
"""Offsets of the data that the kernel passes to the filter."""
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000

Instruction = tuple[int, int, int, int]


def refused_calls(*, namespaces: bool) -> list[Instruction]:
    """Build the filter for a program with or without namespaces of its own; raises `OSError` if none is known.

    Without namespaces it is made for the calling process, whose id it holds.
    """
    machine = os.uname().machine
    if machine not in _ARCHITECTURES:
        raise OSError(f"no filter of system calls for {machine}; there is one for {', '.join(_ARCHITECTURES)}")
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == _X86_64:
        program += [(_AT_LEAST, 0, 1, _FIRST_X32), _answer(errno.EPERM)]
    refused = [*_ALWAYS[machine].values(), *_ALWAYS_SAME.values()]
    if not namespaces:
        refused += [*_WITHOUT_NAMESPACES[machine].values(), *_WITHOUT_NAMESPACES_SAME.values()]
        for name, number in _SELF_ONLY[machine].items():
            program += _only_for_itself(number, zero_too=name == "prlimit64")
    for number in refused:
        program += [(_EQUAL, 0, 1, number), _answer(errno.EPERM)]
    program += [(_EQUAL, 0, 1, _CLONE3), _answer(errno.ENOSYS)]  # its flags are out of sight; libc then uses clone
    program += [
        (_EQUAL, 0, 3, _CLONE[machine]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_ANY_BIT, 0, 1, _NEW_NAMESPACE),
        _answer(errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return program


def _only_for_itself(number: int, *, zero_too: bool) -> list[Instruction]:
    allowed: list[Instruction] = [(_EQUAL, 0, 1, os.getpid()), (_RETURN, 0, 0, _ALLOW)]
    if zero_too:
        allowed += [(_EQUAL, 0, 1, 0), (_RETURN, 0, 0, _ALLOW)]
    body = [(_LOAD, 0, 0, _FIRST_ARGUMENT), *allowed, _answer(errno.EPERM)]
    return [(_EQUAL, 0, len(body), number), *body]


def _answer(error: int) -> Instruction:
    return (_RETURN, 0, 0, _ERROR | error)
