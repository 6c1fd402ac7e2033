"""What Landlock refuses at each of its ABIs, by value: landlock(7), linux/landlock.h.

A machine has one ABI.  The rules of the others are held against what the kernel's documentation
says came with which, and against this kernel, which takes the records of all older ones.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import NamedTuple

import pytest

from rfaas.native import _jail

CREATE_RULESET = 444  # of all architectures; asm-generic/unistd.h

FILES_1 = {  # LANDLOCK_ACCESS_FS_*
    "EXECUTE": 0x1,
    "WRITE_FILE": 0x2,
    "READ_FILE": 0x4,
    "READ_DIR": 0x8,
    "REMOVE_DIR": 0x10,
    "REMOVE_FILE": 0x20,
    "MAKE_CHAR": 0x40,
    "MAKE_DIR": 0x80,
    "MAKE_REG": 0x100,
    "MAKE_SOCK": 0x200,
    "MAKE_FIFO": 0x400,
    "MAKE_BLOCK": 0x800,
    "MAKE_SYM": 0x1000,
}
FILES_2 = FILES_1 | {"REFER": 0x2000}
FILES_3 = FILES_2 | {"TRUNCATE": 0x4000}
FILES_5 = FILES_3 | {"IOCTL_DEV": 0x8000}
TCP = {"BIND_TCP": 0x1, "CONNECT_TCP": 0x2}  # LANDLOCK_ACCESS_NET_*
SCOPES = {"ABSTRACT_UNIX_SOCKET": 0x1, "SIGNAL": 0x2}  # LANDLOCK_SCOPE_*
NONE: dict[str, int] = {}


class Abi(NamedTuple):
    """Its rights, and the bytes of its struct landlock_ruleset_attr: eight for each field."""

    files: dict[str, int]
    net: dict[str, int]
    scoped: dict[str, int]
    bytes: int


ABIS = {
    1: Abi(FILES_1, NONE, NONE, 8),
    2: Abi(FILES_2, NONE, NONE, 8),
    3: Abi(FILES_3, NONE, NONE, 8),
    4: Abi(FILES_3, TCP, NONE, 16),
    5: Abi(FILES_5, TCP, NONE, 16),
    6: Abi(FILES_5, TCP, SCOPES, 24),
    7: Abi(FILES_5, TCP, SCOPES, 24),
}


@pytest.mark.parametrize("abi", ABIS)
def test_all_that_an_abi_knows_is_refused(abi: int) -> None:
    known = ABIS[abi]
    rights = (sum(known.files.values()), sum(known.net.values()), sum(known.scoped.values()))
    assert _jail.landlock_rights(abi) == (*rights, known.bytes)


def test_a_newer_kernel_refuses_what_we_know() -> None:
    assert _jail.landlock_rights(8) == _jail.landlock_rights(1000) == _jail.landlock_rights(7)


@pytest.mark.parametrize("abi", [0, -1])
def test_no_landlock_refuses_nothing(abi: int) -> None:
    assert _jail.landlock_rights(abi) == (0, 0, 0, 0)


@pytest.mark.parametrize("abi", ABIS)
def test_this_kernel_takes_the_rules_of_older_ones(abi: int) -> None:
    """A bit or a size that it did not know would be EINVAL or E2BIG."""
    if abi > _jail.landlock_abi():
        pytest.skip(f"this kernel's Landlock is ABI {_jail.landlock_abi()}")
    *rights, size = _jail.landlock_rights(abi)
    record = struct.pack("<3Q", *rights)
    assert not any(record[size:])
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(CREATE_RULESET, record, ctypes.c_size_t(size), 0)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    os.close(fd)


def test_this_kernels_newest_are_among_them() -> None:
    """One bit more in any field is one that no ABI up to 7 has."""
    if _jail.landlock_abi() != 7:
        pytest.skip(f"this kernel's Landlock is ABI {_jail.landlock_abi()}, not 7")
    *rights, size = _jail.landlock_rights(7)
    libc = ctypes.CDLL(None, use_errno=True)
    for field in range(3):
        more = [value + (value + 1) * (number == field) for number, value in enumerate(rights)]
        record = struct.pack("<3Q", *more)
        assert libc.syscall(CREATE_RULESET, record, ctypes.c_size_t(size), 0) == -1
        assert os.strerror(ctypes.get_errno()) == "Invalid argument"
