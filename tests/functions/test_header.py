"""functions/rfaas.h: its layout, rfaas_fail, both languages; and its Makefile."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from tests.functions.build import FUNCTIONS, build_library, build_shipped, build_text
from tests.functions.calls import Call, Outcome, call_plain, call_richer

STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror")
TEXT_BYTES_MAX = 512

FAIL = r"""
#include "rfaas.h"
RFAAS_FUNCTION(fail)  /* input: status, 32 bits; text */
{
    int32_t status;
    const char *text = (const char *)call->args + sizeof status;
    memcpy(&status, call->args, sizeof status);
    call->result_size = 9;
    return rfaas_fail(call, status, "%.*s", (int)(call->size - sizeof status), text);
}
RFAAS_FUNCTION(fail_in_place)  /* the text's argument lies where the text goes */
{
    memcpy(call->res, "abc", 4);
    return rfaas_fail(call, 1, "<%s>", (const char *)call->res);
}
"""


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("libraries")


@pytest.fixture(scope="session", params=[".c", ".cc"])
def failing(libraries: Path, request: pytest.FixtureRequest) -> Path:
    if request.param == ".cc" and shutil.which("g++") is None:
        pytest.skip("g++ is missing: install g++")
    return build_text(libraries, "failing", FAIL, *STRICT, suffix=request.param)


def test_layout() -> None:
    """What the header asserts for C, for the tests' own copy."""
    offsets = [getattr(Call, name).offset for name, *_ in Call._fields_]
    assert offsets == [0, 8, 16, 20, 24, 28]
    assert ctypes.sizeof(Call) == 32


@pytest.mark.parametrize(
    ("given", "status"),
    [(1, 1), (7, 7), (2**31 - 1, 2**31 - 1), (0, 1), (-1, 1), (-22, 22), (-(2**31), 2**31 - 1)],
)
def test_status_is_made_positive(failing: Path, given: int, status: int) -> None:
    data = struct.pack("<i", given) + b"why"
    assert call_richer(failing, "fail", data) == Outcome(status, b"", "why")


@pytest.mark.parametrize(
    ("text", "capacity", "kept"),
    [
        ("x" * TEXT_BYTES_MAX, 4096, "x" * TEXT_BYTES_MAX),
        ("x" * (TEXT_BYTES_MAX + 1), 4096, "x" * TEXT_BYTES_MAX),
        ("x" * 4000, 4096, "x" * TEXT_BYTES_MAX),
        ("x" * 100, 99, "x" * 99),
        ("xyz", 0, ""),
        ("", 4096, ""),
        ("x" * 511 + "é", 4096, "x" * 511),  # a character is kept whole or not at all
        ("x" * 510 + "é", 4096, "x" * 510 + "é"),
        ("x" * 509 + "€", 4096, "x" * 509 + "€"),
        ("x" * 510 + "€", 4096, "x" * 510),
        ("x" * 511 + "€", 4096, "x" * 511),
        ("🚀" * 2, 7, "🚀"),
        ("🚀", 3, ""),
    ],
)
def test_text_is_cut_to_what_fits(failing: Path, text: str, capacity: int, kept: str) -> None:
    data = struct.pack("<i", 1) + text.encode()
    assert call_richer(failing, "fail", data, capacity) == Outcome(1, b"", kept)


def test_text_may_come_from_the_output(failing: Path) -> None:
    assert call_richer(failing, "fail_in_place", b"") == Outcome(1, b"", "<abc>")


def test_examples_of_the_readme(libraries: Path) -> None:
    readme = (FUNCTIONS / "README.md").read_text()
    blocks = [part.split("```")[0] for part in readme.split("```c\n")[1:]]
    library = build_text(libraries, "mine", "\n".join(blocks), "-Werror")
    assert call_plain(library, "reverse", b"stressed", 8) == b"desserts"
    assert call_richer(library, "upper", b"abc") == Outcome(0, b"ABC", "")
    assert call_richer(library, "upper", b"abc", 2).status == 1


def test_functions_over_arrays(libraries: Path) -> None:
    library = build_library(libraries, "counter")
    values = struct.pack("<5d", 1, 2, 3, 4, 5.5)
    assert call_richer(library, "sum_f64", values).result == struct.pack("<d", 15.5)
    assert call_richer(library, "sum_f64", values[:-1]).status == 3
    assert call_plain(library, "double_f64", values, 40) == struct.pack("<5d", 2, 4, 6, 8, 11)
    counts = [call_plain(library, "count", b"", 8) for _ in range(3)]
    assert counts == [struct.pack("<Q", n) for n in (1, 2, 3)]


def test_makefile_builds_once_and_the_same_again(tmp_path: Path) -> None:
    source = tmp_path / "functions"
    shutil.copytree(FUNCTIONS, source, ignore=shutil.ignore_patterns("*.so*"))
    library = source / "libfunctions.so"

    def make(*arguments: str) -> str:
        command = ["make", "-C", str(source), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    make()
    first = library.read_bytes()
    assert str(tmp_path).encode() not in first
    assert first == build_shipped(tmp_path).read_bytes()  # made elsewhere, from elsewhere
    assert "Nothing to be done" in make()
    newer = library.stat().st_mtime + 10
    os.utime(source / "rfaas.h", (newer, newer))
    assert "Nothing to be done" not in make()
    assert library.read_bytes() == first
    assert [path.name for path in source.glob("*.so*")] == ["libfunctions.so"]
    make("clean")
    assert not library.exists()
