"""Filter of system calls (seccomp) for a sandboxed process, as the program that the kernel runs, without libseccomp.

It refuses namespaces, mounts, tracing, keyrings, io_uring, userfaultfd, BPF, performance counters, the terminal's input
and every socket that is none of the process's own: what `bwrap --unshare-all` alone leaves open.
"""

from __future__ import annotations

import errno
import platform
import struct

_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _EQUAL, _SET, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
"""Offsets in `struct seccomp_data`."""
_X32 = 0x40000000
_AF_UNIX = 1
_NEW_NAMESPACES = 0x7E020080
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET and NEWTIME."""
_TERMINAL = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX."""

X86_64 = {
    "ptrace": 101,
    "syslog": 103,
    "personality": 135,
    "pivot_root": 155,
    "chroot": 161,
    "acct": 163,
    "mount": 165,
    "umount2": 166,
    "swapon": 167,
    "swapoff": 168,
    "reboot": 169,
    "sethostname": 170,
    "setdomainname": 171,
    "iopl": 172,
    "ioperm": 173,
    "init_module": 175,
    "delete_module": 176,
    "quotactl": 179,
    "add_key": 248,
    "request_key": 249,
    "keyctl": 250,
    "move_pages": 279,
    "unshare": 272,
    "perf_event_open": 298,
    "name_to_handle_at": 303,
    "open_by_handle_at": 304,
    "setns": 308,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "kcmp": 312,
    "finit_module": 313,
    "memfd_create": 319,
    "kexec_load": 246,
    "kexec_file_load": 320,
    "bpf": 321,
    "userfaultfd": 323,
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_open": 434,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
}
"""Numbers of the system calls that are refused with EPERM, on x86-64."""
_CLONE, _CLONE3, _SOCKET, _SOCKETPAIR, _IOCTL = 56, 435, 41, 53, 16
_AUDIT_X86_64 = 0xC000003E


def filter_program() -> bytes | None:
    """The filter as an array of `struct sock_filter`, for `bwrap --seccomp`; None on another processor than x86-64."""
    if platform.machine() != "x86_64":
        return None
    program = [
        *_load(_ARCHITECTURE),
        *_unless(_EQUAL, _AUDIT_X86_64, _KILL),
        *_load(_NUMBER),
        *_if(_AT_LEAST, _X32, _ERRNO | errno.ENOSYS),
        *_if(_EQUAL, _CLONE3, _ERRNO | errno.ENOSYS),  # its flags are in memory; the library falls back to clone
    ]
    for number in X86_64.values():
        program += _if(_EQUAL, number, _ERRNO | errno.EPERM)
    for number in (_SOCKET, _SOCKETPAIR):
        program += _of_argument(number, 0, _unless(_EQUAL, _AF_UNIX, _ERRNO | errno.EAFNOSUPPORT))
    program += _of_argument(_CLONE, 0, _if(_SET, _NEW_NAMESPACES, _ERRNO | errno.EPERM))
    for request in _TERMINAL:
        program += _of_argument(_IOCTL, 1, _if(_EQUAL, request, _ERRNO | errno.EPERM))
    program.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("HBBI", *step) for step in program)


Step = tuple[int, int, int, int]
"""Code, jump if true, jump if false, operand."""


def _load(offset: int) -> list[Step]:
    return [(_LOAD, 0, 0, offset)]


def _if(code: int, operand: int, verdict: int) -> list[Step]:
    return [(code, 0, 1, operand), (_RETURN, 0, 0, verdict)]


def _unless(code: int, operand: int, verdict: int) -> list[Step]:
    return [(code, 1, 0, operand), (_RETURN, 0, 0, verdict)]


def _of_argument(number: int, argument: int, steps: list[Step]) -> list[Step]:
    """Steps on the low word of an argument of one system call; the number is loaded again behind them."""
    inside = [*_load(_ARGUMENTS + 8 * argument), *steps, *_load(_NUMBER)]
    return [(_EQUAL, 0, len(inside), number), *inside]
