"""rfaas.core.elf over images of our own making: limits, and what no compiler writes."""

from __future__ import annotations

import struct

import pytest

from rfaas.core import elf
from rfaas.core.elf import ABI_CALL, ABI_PLAIN, ExportedFunction, read_functions
from rfaas.errors import LibraryError
from rfaas.proto.wire import FUNCTIONS_MAX
from tests.core.elf_image import (
    DT_FLAGS_1,
    DT_GNU_HASH,
    DT_STRSZ,
    DT_STRTAB,
    DT_SYMENT,
    DT_SYMTAB,
    DT_VERSYM,
    OBJECT,
    Symbol,
    elf_image,
)

E_TYPE, E_MACHINE, E_PHOFF, E_PHENTSIZE, E_PHNUM = 16, 18, 32, 54, 56
GOOD = elf_image(["echo"])


def patch(offset: int, format_: str, value: int) -> bytes:
    image = bytearray(GOOD)
    struct.pack_into(format_, image, offset, value)
    return bytes(image)


def names(image: bytes) -> list[str]:
    return [function.name for function in read_functions(image, "x86_64")]


@pytest.mark.parametrize("gnu_hash", [True, False])
def test_crafted_image_is_good(gnu_hash: bool) -> None:
    symbols = [Symbol("b"), Symbol("rfaas_abi2_b", OBJECT), Symbol("a")]
    assert read_functions(elf_image(symbols, gnu_hash=gnu_hash), "x86_64") == [
        ExportedFunction("a", ABI_PLAIN),
        ExportedFunction("b", ABI_CALL),
    ]


def test_marker_counts_as_an_object_alone() -> None:
    functions = read_functions(elf_image(["f", "rfaas_abi2_f"]), "x86_64")
    assert functions == [ExportedFunction("f", ABI_PLAIN), ExportedFunction("rfaas_abi2_f", 1)]


@pytest.mark.parametrize(
    "symbol",
    [
        Symbol("local", info=0x02),
        Symbol("unique", info=0xA2),
        Symbol("thread_local", info=0x16),
        Symbol("no_type", info=0x10),
        Symbol("internal", other=1),
        Symbol("hidden", other=2),
        Symbol("undefined", section=0),
        Symbol("absolute", section=0xFFF1),
        Symbol("common", section=0xFFF2),
        Symbol(""),
        Symbol("_init"),
        Symbol("_Z1fv"),
        Symbol(b"not \xff utf-8"),
        Symbol("red\x1b[31m"),
        Symbol("clone.resolver"),
        Symbol("two words"),
        Symbol("n" * 256),
    ],
    ids=lambda symbol: ascii(symbol.name)[1:20] or "empty",
)
def test_symbol_is_left_out(symbol: Symbol) -> None:
    assert names(elf_image([symbol, "echo"])) == ["echo"]


@pytest.mark.parametrize(
    "symbol",
    [
        Symbol("weak", info=0x22),
        Symbol("indirect", info=0x1A),
        Symbol("protected", other=3),
        Symbol("variant_pcs", other=0x80),
        Symbol("far_section", section=0xFFFF),
        Symbol("größe"),
        Symbol("n" * 255),
    ],
    ids=lambda symbol: ascii(symbol.name)[1:20],
)
def test_symbol_is_found(symbol: Symbol) -> None:
    assert names(elf_image([symbol])) == [symbol.name]


def test_old_versions_are_left_out() -> None:
    image = elf_image(["new", "old", "both", "both"], versions=[0, 2, 0x8002, 0x8002, 3])
    assert names(image) == ["both", "new"]


# Limits -------------------------------------------------------------------


@pytest.mark.parametrize("gnu_hash", [True, False])
def test_as_many_functions_as_allowed(gnu_hash: bool) -> None:
    symbols = [f"f{i}" for i in range(FUNCTIONS_MAX)]
    assert len(names(elf_image([*symbols, "f0"], gnu_hash=gnu_hash))) == FUNCTIONS_MAX


def test_one_function_too_many() -> None:
    image = elf_image([f"f{i}" for i in range(FUNCTIONS_MAX + 1)])
    with pytest.raises(LibraryError, match="too many functions, at most 65536") as error:
        read_functions(image, "x86_64")
    assert "-fvisibility=hidden" in error.value.hint


def test_symbols_at_their_limit_and_past_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elf, "SYMBOLS_MAX", 8)
    for gnu_hash in (True, False):
        # The symbol 0, which has no name, counts.
        assert len(names(elf_image([f"f{i}" for i in range(7)], gnu_hash=gnu_hash))) == 7
        with pytest.raises(LibraryError, match=r"too many symbols|has no end"):
            names(elf_image([f"f{i}" for i in range(8)], gnu_hash=gnu_hash))


def test_bytes_of_names_at_their_limit_and_past_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elf, "NAMES_BYTES_MAX", 6)  # NUL, "echo", NUL
    assert names(GOOD) == ["echo"]
    with pytest.raises(LibraryError, match="symbol names: 7 bytes, at most 6 are allowed"):
        names(elf_image(["echos"]))


# What it is instead -------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "what"),
    [
        (b"", "it is empty\nhint: did the compiler fail"),
        (b"#!/bin/sh\nexit\n", r"it is a script \(#!/bin/sh\)\nhint: build a shared library"),
        (b"!<arch>\nx.o/", "it is a static library"),
        (b"!<thin>\nx.o/", "it is a static library"),
        (b"/* GNU ld script */\nGROUP ( x )", "it is a linker script\nhint: give the library"),
        (b"\xcf\xfa\xed\xfe\x07\0\0\1", "it is a Mach-O file of macOS\nhint: build it on Linux"),
        (b"\xca\xfe\xba\xbe\0\0\0\2", "it is a universal Mach-O file"),
        (b"MZ\x90\0\3\0", "it is a PE file of Windows"),
        (b"\0asm\1\0\0\0", "it is a WebAssembly module"),
        (b"PK\3\4\x14", "it is a zip archive\nhint: unpack it"),
        (b"\x1f\x8b\x08", "it is compressed by gzip"),
        (b"\n\nint main;\n", "it is text that begins with 'int main;'"),
        ("naïve é".encode() * 9, "it is text that begins with 'naïve énaïve"),
        (b"\xff\xd8\xff\xe0\0\x10", "it is data that begins with the bytes ff d8 ff e0"),
        (b"\x1b[31mred", "it is data that begins with the bytes 1b 5b 33 31"),
        (GOOD[:4] + b"\1" + GOOD[5:], "it is a 32-bit ELF file\nhint: compile it with -m64"),
        (GOOD[:5] + b"\2" + GOOD[6:], "it is a big-endian ELF file"),
        (GOOD[:3], "truncated: it has 3 bytes, its file header 64"),
        (GOOD[:63], "truncated: it has 63 bytes"),
        (patch(E_TYPE, "<H", 1), "it is an object file\nhint: link it"),
        (patch(E_TYPE, "<H", 2), "it is an executable"),
        (patch(E_TYPE, "<H", 4), "it is a core dump"),
        (patch(E_TYPE, "<H", 9), "it is of ELF type 9"),
        (patch(E_MACHINE, "<H", 183), "built for AArch64, this node is x86-64\nhint: compile"),
        (patch(E_MACHINE, "<H", 9999), "built for machine number 9999 of ELF, this node is"),
        (elf_image(["f"], tags={DT_FLAGS_1: 0x08000000}), "position-independent executable"),
    ],
)
def test_wrong_file(image: bytes, what: str) -> None:
    with pytest.raises(LibraryError, match=what) as error:
        read_functions(image, "x86_64")
    assert error.value.hint
    assert error.value.text.startswith("the library is ")


def test_the_node_by_its_other_names() -> None:
    assert read_functions(GOOD, "AMD64") == read_functions(GOOD, "x86_64")
    with pytest.raises(LibraryError, match="built for x86-64, this node is AArch64"):
        read_functions(GOOD, "arm64")


def test_a_node_that_we_do_not_know_leaves_it_to_the_loader() -> None:
    assert read_functions(GOOD, "e2k") == read_functions(GOOD, "x86_64")


# Damage -------------------------------------------------------------------

FAR = 0xFFFF_FFFF_FFFF_FFF0


@pytest.mark.parametrize(
    ("image", "what"),
    [
        (patch(E_PHOFF, "<Q", FAR), "truncated: its program headers should end at byte"),
        (patch(E_PHNUM, "<H", 0xFFFF), "truncated: its program headers"),
        (patch(E_PHNUM, "<H", 0), "no dynamic section"),
        (patch(E_PHENTSIZE, "<H", 32), "its program headers have 32 bytes each, not 56"),
        (patch(64 + 8, "<Q", FAR), "truncated: its segment 0 should end at byte"),
        (patch(64 + 32, "<Q", 1 << 40), "truncated: its segment 0 should end at byte"),
        (patch(64, "<I", 0), "no dynamic section"),
        (patch(64 + 56 + 16, "<Q", FAR), "its dynamic section .* is not in the file"),
        (patch(64 + 56 + 32, "<Q", 0), "no dynamic symbols"),
        (elf_image(["f"], tags={DT_SYMTAB: None}), "no dynamic symbols"),
        (elf_image(["f"], tags={DT_STRTAB: None}), "no dynamic symbols"),
        (elf_image(["f"], tags={DT_STRSZ: None}), "no dynamic symbols"),
        (elf_image(["f"], tags={DT_SYMENT: 16}), "its symbols have 16 bytes each, not 24"),
        (elf_image(["f"], tags={DT_GNU_HASH: None}), "no symbol hash table"),
        (elf_image(["f"], tags={DT_GNU_HASH: FAR}), "symbol hash table .* is not in the file"),
        (elf_image(["f"], tags={DT_SYMTAB: FAR}), "symbol table .* is not in the file"),
        (elf_image(["f"], tags={DT_STRTAB: FAR}), "symbol names .* is not in the file"),
        (elf_image(["f"], tags={DT_STRSZ: 1 << 20}), "symbol names .* is not in the file"),
        (elf_image(["f"], tags={DT_VERSYM: FAR}), "symbol versions .* is not in the file"),
        (elf_image(["f"], tags={DT_STRSZ: 1}), "exports no functions"),
        (elf_image([]), "exports no functions"),
        (elf_image([], gnu_hash=False), "exports no functions"),
    ],
)
def test_damaged(image: bytes, what: str) -> None:
    with pytest.raises(LibraryError, match=what) as error:
        read_functions(image, "x86_64")
    assert error.value.hint


def test_hash_chain_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elf, "SYMBOLS_MAX", 2)
    with pytest.raises(LibraryError, match="is damaged: its symbol hash table has no end"):
        read_functions(elf_image(["f"], chain_end=0), "x86_64")
