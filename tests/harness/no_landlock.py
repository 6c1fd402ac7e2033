"""Run a program on a kernel without Landlock, as far as it can tell.

    python no_landlock.py PROGRAM [ARGUMENT]...

A filter of system calls answers what such a kernel does where Landlock is switched off, which
landlock_create_ruleset(2) lists: EOPNOTSUPP.  All that the program starts has it too.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys

CREATE_RULESET = 444  # of all architectures; asm-generic/unistd.h
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, MODE_FILTER = 38, 22, 2  # prctl(2)
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # linux/filter.h: of a word, at an offset, at all
RET_ERRNO, RET_ALLOW = 0x00050000, 0x7FFF0000  # seccomp(2)


class Instruction(ctypes.Structure):
    """struct sock_filter."""

    _fields_ = (
        ("code", ctypes.c_uint16),
        ("if_true", ctypes.c_uint8),
        ("if_false", ctypes.c_uint8),
        ("value", ctypes.c_uint32),
    )


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.POINTER(Instruction)))


def hide_landlock() -> None:
    """For this process and all that it starts."""
    filter_ = (Instruction * 4)(
        Instruction(LOAD, 0, 0, 0),  # the call's number, the first word of seccomp_data
        Instruction(JUMP_IF_EQUAL, 0, 1, CREATE_RULESET),
        Instruction(RETURN, 0, 0, RET_ERRNO | errno.EOPNOTSUPP),
        Instruction(RETURN, 0, 0, RET_ALLOW),
    )
    program = Program(len(filter_), filter_)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    privileged = os.geteuid() == 0  # others need it, and then no program of theirs is setuid
    if not privileged and prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no new privileges")
    if prctl(PR_SET_SECCOMP, MODE_FILTER, ctypes.byref(program), 0, 0):
        raise OSError(ctypes.get_errno(), "the filter")


if __name__ == "__main__":
    hide_landlock()
    os.execvp(sys.argv[1], sys.argv[1:])
