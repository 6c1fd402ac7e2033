"""rfaas.core.elf over libraries that a compiler made: what it finds, and that nothing upsets it."""

from __future__ import annotations

import ctypes
import mmap
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfaas.core.elf import ABI_CALL, ABI_PLAIN, ExportedFunction, read_functions
from rfaas.errors import LibraryError
from tests.functions.build import build_library, build_text

MACHINE = platform.machine()
SMALL = ("-nostdlib", "-Wl,-z,noseparate-code", "-Wl,--build-id=none", "-Wl,-s")
E_SHOFF, E_SHNUM = slice(0x28, 0x30), slice(0x3C, 0x40)  # with e_shstrndx

MIXED = """
#include "rfaas.h"
RFAAS_EXPORT uint32_t plain(void *a, uint32_t n, void *r) { (void)a; (void)r; return n; }
RFAAS_FUNCTION(richer) { return (int32_t)call->size; }
RFAAS_EXPORT __attribute__((weak)) uint32_t weakly(void) { return 0; }
RFAAS_EXPORT uint32_t _reserved(void) { return 0; }
RFAAS_EXPORT int data;
int data = 1;
uint32_t hidden(void) { return 0; }
static __attribute__((used)) uint32_t local(void) { return 0; }
__attribute__((visibility("protected"))) uint32_t protected_one(void) { return 0; }
"""
MIXED_FUNCTIONS = [
    ExportedFunction("plain", ABI_PLAIN),
    ExportedFunction("protected_one", ABI_PLAIN),
    ExportedFunction("richer", ABI_CALL),
    ExportedFunction("weakly", ABI_PLAIN),
]


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("libraries")


@pytest.fixture(scope="session")
def small(libraries: Path) -> bytes:
    return build_text(libraries, "mixed", MIXED, *SMALL).read_bytes()


def names(path: Path) -> list[str]:
    return [function.name for function in read_functions(path.read_bytes(), MACHINE)]


def read(image: bytearray | memoryview) -> list[ExportedFunction] | LibraryError:
    """What is read, or the error; anything else that is raised fails the test."""
    try:
        return read_functions(image, MACHINE)
    except LibraryError as error:
        return error


def find_libc() -> Path:
    ctypes.CDLL("libc.so.6")
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith("/libc.so.6"):
            return Path(line.split(maxsplit=5)[5])
    pytest.skip("this machine's C library is not glibc")


# What is found ------------------------------------------------------------


@pytest.mark.parametrize("style", ["gnu", "sysv", "both"])
def test_finds_exported_functions_and_their_abi(libraries: Path, style: str) -> None:
    library = build_text(libraries, "mixed", MIXED, f"-Wl,--hash-style={style}")
    assert read_functions(library.read_bytes(), MACHINE) == MIXED_FUNCTIONS


def test_finds_them_in_the_libraries_of_the_tests(libraries: Path) -> None:
    library = build_library(libraries, "counter")
    assert read_functions(library.read_bytes(), MACHINE) == [
        ExportedFunction("count", ABI_PLAIN),
        ExportedFunction("double_f64", ABI_PLAIN),
        ExportedFunction("sum_f64", ABI_CALL),
    ]


def test_stripped_of_symbols(libraries: Path, tmp_path: Path) -> None:
    library = Path(shutil.copy(build_text(libraries, "mixed", MIXED), tmp_path))
    subprocess.run(["strip", "--strip-all", library], check=True)
    assert read_functions(library.read_bytes(), MACHINE) == MIXED_FUNCTIONS


def test_stripped_of_section_headers(libraries: Path) -> None:
    image = bytearray(build_text(libraries, "mixed", MIXED).read_bytes())
    headers = int.from_bytes(image[E_SHOFF], "little")
    image[E_SHOFF] = bytes(8)
    image[E_SHNUM] = bytes(4)
    assert read_functions(image[:headers], MACHINE) == MIXED_FUNCTIONS


def test_compiled_as_cpp(libraries: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("g++ is missing: install g++")
    text = MIXED + "namespace mine { RFAAS_EXPORT int in_namespace() { return 0; } }"
    library = build_text(libraries, "cpp", text, suffix=".cc")
    mangled = ExportedFunction("protected_one", ABI_PLAIN)  # the one without RFAAS_EXPORT
    expected = {*MIXED_FUNCTIONS, ExportedFunction("in_namespace", ABI_PLAIN)} - {mangled}
    assert read_functions(library.read_bytes(), MACHINE) == sorted(expected)


def test_functions_for_several_processors_count(libraries: Path) -> None:
    """The compiler makes a GNU_IFUNC symbol of a function with target_clones."""
    if MACHINE != "x86_64":
        pytest.skip("the processors named in this test are x86-64's")
    text = """
    __attribute__((visibility("default"), target_clones("avx2", "default")))
    unsigned cloned(void) { return 1; }
    """
    assert names(build_text(libraries, "clones", text)) == ["cloned"]


def test_c_library_of_this_machine() -> None:
    """Its functions, more than a thousand, many with old versions: exactly what dlsym(3) finds."""
    path = find_libc()
    found = names(path)
    libc = ctypes.CDLL(str(path))
    assert [name for name in found if not hasattr(libc, name)] == []

    listing = subprocess.run(
        ["nm", "--dynamic", "--defined-only", path], capture_output=True, text=True, check=True
    ).stdout
    symbol = re.compile(r"^[0-9a-f]+ [TWi] ([^_@\s][^@\s]*)(@@\S+)?$", re.MULTILINE)
    expected = {name for name, _ in symbol.findall(listing)}
    assert len(found) > 1000
    assert set(found) == expected
    assert found == sorted(found)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_takes_any_buffer(small: bytes, kind: type) -> None:
    assert read_functions(kind(small), MACHINE) == MIXED_FUNCTIONS


def test_lets_go_of_the_buffer(small: bytes) -> None:
    """Neither a result nor an error keeps a map of the file open."""
    with mmap.mmap(-1, len(small)) as image:
        image[:] = small
        assert read_functions(image, MACHINE) == MIXED_FUNCTIONS
        image[:4] = b"\0\0\0\0"
        with pytest.raises(LibraryError) as error:
            read_functions(image, MACHINE)
        image.close()  # a BufferError if somebody still looks into it
    assert error.value.hint


# What is not a library ----------------------------------------------------


def test_object_file(libraries: Path) -> None:
    image = build_text(libraries, "object", MIXED, "-c", "-fno-lto").read_bytes()
    with pytest.raises(LibraryError, match="it is an object file\nhint: link it: cc -shared"):
        read_functions(image, MACHINE)


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (("-fPIE", "-pie"), "a position-independent executable"),
        (("-no-pie",), "an executable"),
    ],
)
def test_executable(libraries: Path, flags: tuple[str, ...], what: str) -> None:
    source = "int main(void) { return 0; }"
    # The linker takes the last of -shared and -pie alone: a fresh command line.
    path = libraries / f"executable{flags[0]}"
    subprocess.run(["cc", "-x", "c", "-", "-o", path, *flags], input=source.encode(), check=True)
    with pytest.raises(LibraryError, match=f"it is {what}\nhint: build a shared library"):
        read_functions(path.read_bytes(), MACHINE)


def test_debugging_data_alone(libraries: Path, tmp_path: Path) -> None:
    library = build_text(libraries, "mixed", MIXED, "-g1")
    debug = tmp_path / "mixed.debug"
    subprocess.run(["objcopy", "--only-keep-debug", library, debug], check=True)
    with pytest.raises(LibraryError, match=r"no dynamic symbols|is damaged|is truncated"):
        read_functions(debug.read_bytes(), MACHINE)


def test_no_functions_but_cpp_names(libraries: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("g++ is missing: install g++")
    text = '__attribute__((visibility("default"))) int forgotten(int n) { return n; }'
    library = build_text(libraries, "mangled", text, suffix=".cc")
    with pytest.raises(LibraryError, match=r'exports no functions\nhint: .*_Z9forgotteni.*"C"'):
        read_functions(library.read_bytes(), MACHINE)


def test_no_functions_at_all(libraries: Path) -> None:
    library = build_text(libraries, "nothing", "int hidden(void) { return 0; }")
    with pytest.raises(LibraryError, match=r"exports no functions\nhint: .*RFAAS_EXPORT"):
        read_functions(library.read_bytes(), MACHINE)


# Damage -------------------------------------------------------------------


def test_truncated_anywhere(small: bytes) -> None:
    """Each beginning of a library is refused, or has all that the loader needs."""
    errors = set()
    view = memoryview(small)
    for length in range(len(small)):
        outcome = read(view[:length])
        if isinstance(outcome, LibraryError):
            errors.add(outcome.text)
        else:
            assert outcome == MIXED_FUNCTIONS
    expected = {"is empty", "file header", "program headers", "segment"}
    assert all(any(part in error for error in errors) for part in expected), errors


DAMAGE = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8
)


@given(damage=DAMAGE)
@settings(max_examples=400, deadline=None, derandomize=True)
def test_changed_anywhere(small: bytes, damage: list[tuple[float, int]]) -> None:
    check_damage(small, len(small), damage)


@given(damage=DAMAGE)
@settings(max_examples=400, deadline=None, derandomize=True)
def test_changed_where_it_is_read(small: bytes, damage: list[tuple[float, int]]) -> None:
    """Headers, symbols and hash tables are at the beginning of the file."""
    check_damage(small, 0x500, damage)


def check_damage(image: bytes, length: int, damage: list[tuple[float, int]]) -> None:
    damaged = bytearray(image)
    for where, value in damage:
        damaged[int(where * length)] = value
    outcome = read(damaged)
    if not isinstance(outcome, LibraryError):
        assert outcome == sorted(outcome)
        assert all(function.name.isidentifier() for function in outcome)
