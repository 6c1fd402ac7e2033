"""Reads which functions a library exports, from the bytes of its ELF file.

The table of functions numbers what a client may call, so it must be known
before anything of the library runs, and the file comes from a stranger: every
offset, size and count is checked against the bytes that are there, every loop
has a bound, and whatever is wrong ends in a `LibraryError`.

What is read is what the dynamic loader reads: program headers, the dynamic
section, symbols, names, versions.  Section headers are not looked at; a
library that was stripped of them is as good as any.  (Layouts: elf(5); the
System V ABI, "Object Files" and "Dynamic Linking"; GNU hash tables as in
glibc's dl-lookup.c.)

This module opens no file and loads nothing.
"""

from __future__ import annotations

import struct
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

from rfaas.core.elf_header import HEADER, HINT_COPY, HINT_SHARED, check_header
from rfaas.errors import LibraryError
from rfaas.proto.wire import FUNCTIONS_MAX

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterable, Iterator

__all__ = ["ABI_CALL", "ABI_PLAIN", "ExportedFunction", "read_functions"]

ABI_PLAIN = 1  # uint32_t name(void *args, uint32_t size, void *res)
ABI_CALL = 2  # int32_t name(rfaas_call *call), marked by an object rfaas_abi2_<name>
MARKER = "rfaas_abi2_"  # functions/rfaas.h, RFAAS_FUNCTION

NAME_BYTES_MAX = 255  # what a message carries; a longer name cannot be asked for
SYMBOLS_MAX = 1 << 20  # the largest libraries known have some 300,000
NAMES_BYTES_MAX = 1 << 27  # of all symbols together; theirs have some 40 MB
DYNAMIC_MAX = 4096  # entries of the dynamic section; usually about 30

_PROGRAM = struct.Struct("<IIQQQQQQ")
_DYNAMIC = struct.Struct("<QQ")
_SYMBOL = struct.Struct("<IBBH16x")  # name, info, other, section; value and size are not read
_GNU_HASH = struct.Struct("<IIII")
_WORD = struct.Struct("<I")

_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_SYMENT = 4, 5, 6, 10, 11
_DT_GNU_HASH, _DT_VERSYM, _DT_FLAGS_1 = 0x6FFFFEF5, 0x6FFFFFF0, 0x6FFFFFFB
_DF_1_PIE = 0x08000000
_VERSION_HIDDEN = 0x8000  # an old version of a symbol, which dlsym(3) does not find
_RESERVED_SECTIONS = 0xFF00  # SHN_LORESERVE: absolute and the like, not in a section
_SECTION_INDEX_ELSEWHERE = 0xFFFF  # SHN_XINDEX: a section after the 65,280th

# Symbol info is binding << 4 | type; GLOBAL and WEAK are 1 and 2.
_FUNCTION_INFO = frozenset((0x12, 0x22, 0x1A, 0x2A))  # FUNC, and GNU_IFUNC of target_clones
_OBJECT_INFO = frozenset((0x11, 0x21))
_WANTED_INFO = _FUNCTION_INFO | _OBJECT_INFO
_VISIBLE = frozenset((0, 3))  # DEFAULT, PROTECTED; the others are not for other libraries

_HINT_EXPORT = "declare each with RFAAS_FUNCTION or RFAAS_EXPORT of rfaas.h"
_HINT_HIDE = f"compile with -fvisibility=hidden, and {_HINT_EXPORT}"


class ExportedFunction(NamedTuple):
    """A function that can be called: its name, and ABI_PLAIN or ABI_CALL."""

    name: str
    abi: int


class _Names(NamedTuple):
    """Where the names begin of the symbols that a lookup would find, and all names."""

    functions: list[int]
    objects: list[int]
    table: str


class _Segment(NamedTuple):
    """A part of the file that is loaded at `address`."""

    address: int
    offset: int
    size: int


def read_functions(
    image: bytes | bytearray | memoryview | mmap.mmap, machine: str
) -> list[ExportedFunction]:
    """The functions that the library exports, sorted by name.

    A function is a global or weak symbol of default or protected visibility
    that is defined in the library, that dlsym(3) would find, and whose name is
    an identifier of a program's own.  So what compilers add is left out: names
    that begin with an underscore, which C reserves to them (C11, 7.1.3), such
    as `_init`, mangled C++ and Rust; and names with a dot, such as the
    `f.resolver` of a function that exists for several processors.  A name of
    more than NAME_BYTES_MAX bytes is left out too.

    `image` is the whole file, lent until the call returns; nobody may shrink
    it meanwhile.  `machine` is the node's, as platform.machine() names it.

    Raises LibraryError for a file that is not a shared library for `machine`,
    is damaged, or exports no function or more than FUNCTIONS_MAX.
    """
    with memoryview(image) as whole, whole.cast("B") as view:
        segments, dynamic = _read_headers(view, machine)
        tags = _read_dynamic(view, dynamic, segments)
        names = _read_symbols(view, tags, segments)
    return _functions(names)


def _read_headers(view: memoryview, machine: str) -> tuple[list[_Segment], _Segment]:
    """The segments that are loaded, and the one that is the dynamic section."""
    check_header(bytes(view[: HEADER.size]), machine)
    _, _, _, _, _, table, _, _, _, entry_bytes, entries, *_ = HEADER.unpack_from(view)
    if entry_bytes != _PROGRAM.size and entries:
        raise _damaged(f"its program headers have {entry_bytes} bytes each, not {_PROGRAM.size}")
    if table + entries * _PROGRAM.size > len(view):
        raise _truncated("program headers", table, entries * _PROGRAM.size, len(view))

    segments = []
    dynamic = None
    headers = bytes(view[table : table + entries * _PROGRAM.size])
    for number, header in enumerate(_PROGRAM.iter_unpack(headers)):
        kind, _, offset, address, _, size, _, _ = header
        if kind == _PT_LOAD:
            if size and offset + size > len(view):
                raise _truncated(f"segment {number}", offset, size, len(view))
            segments.append(_Segment(address, offset, size))
        elif kind == _PT_DYNAMIC:
            dynamic = _Segment(address, offset, size)
    if dynamic is None or not segments:
        raise LibraryError(
            "the library has no dynamic symbols: it has no dynamic section",
            hint=f"it was linked statically, or holds debugging data alone; {HINT_SHARED}",
        )
    return segments, dynamic


def _read_dynamic(view: memoryview, dynamic: _Segment, segments: list[_Segment]) -> dict[int, int]:
    """The dynamic section: tag to value."""
    size = min(dynamic.size, DYNAMIC_MAX * _DYNAMIC.size) // _DYNAMIC.size * _DYNAMIC.size
    section = _part(view, segments, dynamic.address, size, "dynamic section")
    tags: dict[int, int] = {}
    for tag, value in _DYNAMIC.iter_unpack(section):
        if tag == 0:  # DT_NULL
            break
        tags[tag] = value
    if tags.get(_DT_FLAGS_1, 0) & _DF_1_PIE:
        raise LibraryError(
            "the library is not a shared library: it is a position-independent executable",
            hint=HINT_SHARED,
        )
    if not tags.keys() >= {_DT_SYMTAB, _DT_STRTAB, _DT_STRSZ}:
        raise LibraryError("the library has no dynamic symbols", hint=HINT_SHARED)
    if tags.get(_DT_SYMENT, _SYMBOL.size) != _SYMBOL.size:
        raise _damaged(f"its symbols have {tags[_DT_SYMENT]} bytes each, not {_SYMBOL.size}")
    return tags


def _read_symbols(view: memoryview, tags: dict[int, int], segments: list[_Segment]) -> _Names:
    """The names of the functions and objects that are defined and visible."""
    first, end = _symbol_range(view, tags, segments)
    count = end - first
    start = tags[_DT_SYMTAB] + first * _SYMBOL.size
    symbols = _part(view, segments, start, count * _SYMBOL.size, "symbol table")
    if tags[_DT_STRSZ] > NAMES_BYTES_MAX:
        raise _too_many(f"symbol names: {tags[_DT_STRSZ]} bytes", NAMES_BYTES_MAX)
    table = _part(view, segments, tags[_DT_STRTAB], tags[_DT_STRSZ], "symbol names")
    versions: Iterable[int] = repeat(0)
    if _DT_VERSYM in tags:
        start = tags[_DT_VERSYM] + first * 2
        raw = _part(view, segments, start, count * 2, "symbol versions")
        versions = struct.unpack(f"<{count}H", raw)

    functions: list[int] = []
    objects: list[int] = []
    for (name, info, other, section), version in zip(  # 60,000 of them are usual enough
        _SYMBOL.iter_unpack(symbols), versions, strict=False
    ):
        if (
            info in _WANTED_INFO
            and other & 3 in _VISIBLE
            and (0 < section < _RESERVED_SECTIONS or section == _SECTION_INDEX_ELSEWHERE)
            and not version & _VERSION_HIDDEN
        ):
            (functions if info in _FUNCTION_INFO else objects).append(name)
    # As Latin-1, which has one character for each byte, so that offsets stay.
    return _Names(functions, objects, table.decode("latin-1"))


def _symbol_range(
    view: memoryview, tags: dict[int, int], segments: list[_Segment]
) -> tuple[int, int]:
    """First symbol that a lookup can find, and one past the last.

    The file says it nowhere but in its hash tables: DT_HASH has as many chain
    entries as there are symbols; the chains of DT_GNU_HASH run in the order of
    the symbols, and the last one ends with an entry whose lowest bit is set.
    """
    what = "symbol hash table"
    if _DT_GNU_HASH in tags:
        address = tags[_DT_GNU_HASH]
        header = _part(view, segments, address, _GNU_HASH.size, what)
        buckets, first, filter_words, _ = _GNU_HASH.unpack(header)
        _check_count(buckets)
        address += _GNU_HASH.size + filter_words * 8
        raw = _part(view, segments, address, buckets * 4, what)
        last = max(struct.unpack(f"<{buckets}I", raw), default=0)
        if last < max(first, 1):  # every bucket is empty: nothing is exported
            return first, first
        _check_count(last)
        offset, room = _find(segments, address + (buckets + last - first) * 4, 4, what)
        for into in range(0, min(room // 4, SYMBOLS_MAX - last) * 4, 4):
            if _WORD.unpack_from(view, offset + into)[0] & 1:
                return first, last + into // 4 + 1
        raise _damaged(f"its {what} has no end")
    if _DT_HASH in tags:
        header = _part(view, segments, tags[_DT_HASH], 8, what)
        count = _WORD.unpack_from(header, 4)[0]
        _check_count(count)
        return 0, count
    raise LibraryError(
        "the library has no symbol hash table, so nothing in it can be looked up",
        hint="link it with -Wl,--hash-style=gnu",
    )


def _functions(names: _Names) -> list[ExportedFunction]:
    """The functions that have a name to call them by, each with its ABI."""
    found: set[str] = set()
    mangled = ""
    for name in _texts(names.table, names.functions):
        if not name.startswith("_"):
            found.add(name)
            if len(found) > FUNCTIONS_MAX + 1:  # one of them may be "", see below
                raise _too_many("functions", FUNCTIONS_MAX)
        elif not mangled and name.startswith("_Z"):
            mangled = name
    found.discard("")  # stands for the names that no message can carry
    if not found:
        hint = _HINT_EXPORT
        if mangled:
            hint = f'its names are C++, such as {mangled}: {_HINT_EXPORT}, or with extern "C"'
        raise LibraryError("the library exports no functions", hint=hint)
    if len(found) > FUNCTIONS_MAX:
        raise _too_many("functions", FUNCTIONS_MAX)

    markers = [
        start + len(MARKER) for start in names.objects if names.table.startswith(MARKER, start)
    ]
    marked = found.intersection(_texts(names.table, markers))
    return [
        ExportedFunction(name, ABI_CALL if name in marked else ABI_PLAIN) for name in sorted(found)
    ]


def _texts(table: str, starts: list[int]) -> Iterator[str]:
    """The names at `starts`; "" for one that is unfinished, too long, or no identifier."""
    for start in starts:
        end = table.find("\0", start, start + NAME_BYTES_MAX + 1)
        name = table[start:end] if end > 0 else ""
        if not name.isascii():
            try:
                name = name.encode("latin-1").decode()
            except UnicodeDecodeError:
                name = ""
        yield name if name.isidentifier() else ""


def _part(view: memoryview, segments: list[_Segment], address: int, size: int, what: str) -> bytes:
    """A copy of the `size` bytes that are loaded at `address`."""
    offset, _ = _find(segments, address, size, what)
    return bytes(view[offset : offset + size])


def _find(segments: list[_Segment], address: int, size: int, what: str) -> tuple[int, int]:
    """Where in the file `address` is, with at least `size` bytes; and how many there are."""
    for segment in segments:
        into = address - segment.address
        if into >= 0 and into + size <= segment.size:
            return segment.offset + into, segment.size - into
    raise _damaged(f"its {what} ({size} bytes at {address:#x}) is not in the file")


def _check_count(count: int) -> None:
    if count > SYMBOLS_MAX:
        raise _too_many("symbols", SYMBOLS_MAX)


def _too_many(what: str, most: int) -> LibraryError:
    return LibraryError(
        f"the library has too many {what}, at most {most} are allowed", hint=_HINT_HIDE
    )


def _damaged(why: str) -> LibraryError:
    return LibraryError(f"the library is damaged: {why}", hint=HINT_COPY)


def _truncated(what: str, offset: int, size: int, length: int) -> LibraryError:
    return LibraryError(
        f"the library is truncated: its {what} should end at byte {offset + size},"
        f" the file has {length}",
        hint=HINT_COPY,
    )
