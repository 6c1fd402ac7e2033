"""Writes ELF shared objects of the tests' own making, byte by byte.

No compiler makes the damaged ones, nor one with 65,537 functions in no time.
Everything lies in one segment that begins at the start of the file, at address 0.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

FUNCTION = 0x12  # GLOBAL, FUNC
OBJECT = 0x11  # GLOBAL, OBJECT
END_OF_CHAIN = 1

DT_HASH, DT_STRTAB, DT_SYMTAB, DT_STRSZ, DT_SYMENT = 4, 5, 6, 10, 11
DT_GNU_HASH, DT_VERSYM, DT_FLAGS_1 = 0x6FFFFEF5, 0x6FFFFFF0, 0x6FFFFFFB


class Symbol(NamedTuple):
    """A symbol; by default a function that anybody may call."""

    name: str | bytes
    info: int = FUNCTION
    other: int = 0
    section: int = 1


def elf_image(
    symbols: Sequence[Symbol | str],
    *,
    gnu_hash: bool = True,
    tags: dict[int, int | None] | None = None,
    chain_end: int = END_OF_CHAIN,
    versions: Sequence[int] = (),
) -> bytes:
    """A shared object for x86-64 with `symbols`.

    `tags` replaces entries of the dynamic section, or takes them away where it
    has None; `chain_end` is the last word of the hash table.
    """
    strings = bytearray(b"\0")
    table = bytearray(24)
    for symbol in symbols:
        name, info, other, section = symbol if isinstance(symbol, Symbol) else Symbol(symbol)
        table += struct.pack("<IBBHQQ", len(strings), info, other, section, 0x1000, 16)
        strings += (name.encode() if isinstance(name, str) else name) + b"\0"

    count = len(symbols)
    if gnu_hash:  # one bucket, whose chain is all symbols; a filter of one word
        bucket = 1 if count else 0
        words = struct.pack("<IIIIQI", 1, 1, 1, 0, 0, bucket)
        words += struct.pack(f"<{count}I", *[0] * (count - 1), chain_end) if count else b""
    else:
        words = struct.pack(f"<{2 + 1 + count + 1}I", 1, count + 1, *[0] * (count + 2))

    at: dict[int, int | None] = {}
    body = bytearray()
    start = 64 + 2 * 56
    for tag, part in (
        (DT_SYMTAB, bytes(table)),
        (DT_STRTAB, bytes(strings)),
        (DT_GNU_HASH if gnu_hash else DT_HASH, words),
        (DT_VERSYM, struct.pack(f"<{len(versions)}H", *versions)),
    ):
        if part:
            at[tag] = start + len(body)
            body += part + bytes(-len(part) % 8)
    at |= {DT_STRSZ: len(strings), DT_SYMENT: 24}
    at |= tags or {}
    entries = [(tag, value) for tag, value in at.items() if value is not None]
    dynamic = b"".join(struct.pack("<QQ", *entry) for entry in [*entries, (0, 0)])
    dynamic_at = start + len(body)
    end = dynamic_at + len(dynamic)

    header = struct.pack(
        "<4sBBBB8xHHIQQQIHHHHHH",
        *(b"\x7fELF", 2, 1, 1, 0),
        *(3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0),
    )
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, end, end, 4096)
    where = struct.pack("<IIQQQQQQ", 2, 4, dynamic_at, dynamic_at, 0, len(dynamic), len(dynamic), 8)
    return header + load + where + bytes(body) + dynamic
