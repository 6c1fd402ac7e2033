"""Refuses a file whose first bytes say that it is no library for this node.

A wrong file is the commonest mistake of all, and "invalid ELF header" helps
nobody: who reads it mostly holds the source, the archive or the executable
that stands beside the library, or a library for another machine.  So the
message says what the file is.

Nothing past the file header is known here; that is `rfaas.core.elf`.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from rfaas.errors import LibraryError

__all__ = ["HEADER", "HINT_COPY", "HINT_SHARED", "check_header"]

HEADER = struct.Struct("<16sHHIQQQIHHHHHH")  # Elf64_Ehdr
HINT_SHARED = "build a shared library: cc -fPIC -shared -o libmine.so mine.c"
HINT_COPY = "the copy is incomplete or damaged: build or copy the library again"

_MAGIC = b"\x7fELF"
_CLASS, _CLASS_64 = 4, 2  # offset in e_ident, value
_DATA, _DATA_LITTLE_ENDIAN = 5, 1
_SHARED_OBJECT = 3  # ET_DYN

_HINT_LINUX = "build it on Linux: cc -fPIC -shared -o libmine.so mine.c"
_HINT_UNPACK = "unpack it, and give the library in it"
_HINT_SCRIPT = "give the library that it names"


class _Kind(NamedTuple):
    """What a file is, as the end of "it is ...", and what to do."""

    what: str
    hint: str = HINT_SHARED


# First bytes of a file, and what it is.  The first match counts.
_BEGINNINGS: tuple[tuple[bytes, _Kind], ...] = (
    (b"!<arch>\n", _Kind("a static library (ar archive)")),
    (b"!<thin>\n", _Kind("a static library (thin ar archive)")),
    (b"/* GNU ld script", _Kind("a linker script", _HINT_SCRIPT)),
    (b"INPUT(", _Kind("a linker script", _HINT_SCRIPT)),
    (b"\xcf\xfa\xed\xfe", _Kind("a Mach-O file of macOS", _HINT_LINUX)),
    (b"\xce\xfa\xed\xfe", _Kind("a 32-bit Mach-O file of macOS", _HINT_LINUX)),
    (b"\xca\xfe\xba\xbe", _Kind("a universal Mach-O file of macOS or a Java class", _HINT_LINUX)),
    (b"MZ", _Kind("a PE file of Windows (.dll or .exe)", _HINT_LINUX)),
    (b"\0asm", _Kind("a WebAssembly module")),
    (b"BC\xc0\xde", _Kind("LLVM bitcode")),
    (b"PK\x03\x04", _Kind("a zip archive", _HINT_UNPACK)),
    (b"\x1f\x8b", _Kind("compressed by gzip", _HINT_UNPACK)),
    (b"\xfd7zXZ\0", _Kind("compressed by xz", _HINT_UNPACK)),
    (b"\x28\xb5\x2f\xfd", _Kind("compressed by zstd", _HINT_UNPACK)),
)

# e_type, and what such a file is
_TYPES = {
    1: _Kind("an object file", "link it: cc -shared -o libmine.so mine.o"),
    2: _Kind("an executable"),
    4: _Kind("a core dump"),
}

# The machines of e_machine, by the name that uname(2) has for them.
_MACHINES = {
    "x86_64": (62, "x86-64"),
    "aarch64": (183, "AArch64"),
    "riscv64": (243, "RISC-V"),
    "ppc64le": (21, "PowerPC 64"),
    "s390x": (22, "IBM Z"),
    "loongarch64": (258, "LoongArch"),
    "mips64": (8, "MIPS"),
    "ia64": (50, "Itanium"),
    "sparc64": (43, "SPARC"),
}
_MACHINE_NAMES = dict(_MACHINES.values())
_MACHINE_ALIASES = {"amd64": "x86_64", "arm64": "aarch64"}


def check_header(head: bytes, machine: str) -> None:
    """Refuses what is not a 64-bit little-endian shared object for `machine`.

    `head` is the first HEADER.size bytes of the file, or all of a shorter one;
    `machine` is the node's, as platform.machine() names it.  Raises LibraryError.
    """
    kind = _foreign(head)
    if kind is not None:
        raise LibraryError(
            f"the library is not a 64-bit little-endian ELF file: it is {kind.what}",
            hint=kind.hint,
        )
    if len(head) < HEADER.size:
        raise LibraryError(
            f"the library is truncated: it has {len(head)} bytes, its file header {HEADER.size}",
            hint=HINT_COPY,
        )
    _, file_type, built_for, *_ = HEADER.unpack(head)
    if file_type != _SHARED_OBJECT:
        kind = _TYPES.get(file_type, _Kind(f"of ELF type {file_type}"))
        raise LibraryError(
            f"the library is not a shared library: it is {kind.what}", hint=kind.hint
        )
    _check_machine(built_for, machine)


def _foreign(head: bytes) -> _Kind | None:
    """What the file is; None for a 64-bit little-endian ELF file, or the beginning of one."""
    if not head:
        return _Kind("empty", "did the compiler fail, or is the disk full?")
    if head[: len(_MAGIC)] == _MAGIC[: len(head)]:
        if len(head) > _CLASS and head[_CLASS] != _CLASS_64:
            return _Kind("a 32-bit ELF file", "compile it with -m64")
        if len(head) > _DATA and head[_DATA] != _DATA_LITTLE_ENDIAN:
            return _Kind("a big-endian ELF file", "compile it for a little-endian machine")
        return None
    for beginning, kind in _BEGINNINGS:
        if head.startswith(beginning):
            return kind
    text = _text(head)
    if text.startswith("#!"):
        return _Kind(f"a script ({text})")
    if text:
        return _Kind(f"text that begins with {text!r}")
    return _Kind(f"data that begins with the bytes {head[:4].hex(' ')}")


def _text(head: bytes) -> str:
    """The first line that is not empty, cut, if all of `head` is text; else ""."""
    text = head.decode("utf-8", errors="ignore")
    if len(text.encode()) < len(head) - 3:  # more is lost than one character, cut by the end
        return ""
    if not all(character.isprintable() or character in "\t\n\r\f" for character in text):
        return ""
    return text.strip().split("\n")[0].strip()[:40]


def _check_machine(built_for: int, machine: str) -> None:
    """Refuses another machine; on a node that is not in our table the loader decides."""
    machine = machine.lower()
    known = _MACHINES.get(_MACHINE_ALIASES.get(machine, machine))
    if known is None or known[0] == built_for:
        return
    other = _MACHINE_NAMES.get(built_for, f"machine number {built_for} of ELF")
    raise LibraryError(
        f"the library is built for {other}, this node is {known[1]}",
        hint=f"compile it on a node that is {known[1]}, or with a cross compiler",
    )
