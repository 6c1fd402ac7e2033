"""Compiles the small libraries that tests load, once for each directory.

    @pytest.fixture(scope="session")
    def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("libraries")

    def test_crash(libraries: Path) -> None:
        library = build_library(libraries, "hostile")

A second call with the same directory, name and flags returns the same file
and compiles nothing; a session-wide directory is therefore all the cache there
is.  Two processes may share it.  Sources stand beside this file.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
FUNCTIONS = HERE.parent.parent / "functions"  # rfaas.h, and the functions that ship
FLAGS = ("-O2", "-g0", "-Wall", "-Wextra", "-fPIC", "-shared", "-fvisibility=hidden")
COMPILE_S = 60


def build_library(directory: Path, name: str, *extra_flags: str) -> Path:
    """`directory`/lib`name`.so, compiled from `name`.c beside this file."""
    return _build(directory, name, HERE / f"{name}.c", extra_flags)


def build_text(
    directory: Path, name: str, text: str, *extra_flags: str, suffix: str = ".c"
) -> Path:
    """The same from source in `text`; with `suffix` ".cc" it is C++."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    source = directory / f"{name}-{digest}{suffix}"
    source.write_text(text)
    return _build(directory, source.name, source, extra_flags)


def build_needs_missing(directory: Path) -> Path:
    """A library that needs another one, which is gone: dlopen(3) cannot load it.

    The linker wants to see the other one, so it is built, linked with, and deleted.
    """
    target = directory / "libneeds_missing.so"
    if not target.exists():
        there = directory / f"missing.{os.getpid()}"
        there.mkdir()
        missing = build_library(there, "missing", "-Wl,-soname,librfaas-test-missing.so")
        build_library(there, "needs_missing", str(missing)).replace(target)
        shutil.rmtree(there)
    return target


def build_shipped(directory: Path) -> Path:
    """libfunctions.so, the functions that ship, from their own Makefile, in `directory`."""
    target = directory / "libfunctions.so"
    _run(["make", "--no-print-directory", "-C", str(FUNCTIONS), f"LIBRARY={target}"])
    return target


def _build(directory: Path, name: str, source: Path, extra_flags: tuple[str, ...]) -> Path:
    if extra_flags:
        name += "-" + hashlib.sha256("\0".join(extra_flags).encode()).hexdigest()[:12]
    target = directory / f"lib{name}.so"
    if not target.exists():
        partial = directory / f"lib{name}.{os.getpid()}"
        compiler = os.environ.get("CC", "cc")
        include = f"-I{FUNCTIONS}"
        # Libraries are named among the extra flags, and are searched in order: source first.
        _run([compiler, *FLAGS, include, "-o", str(partial), str(source), *extra_flags])
        partial.replace(target)
    return target


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=COMPILE_S
        )
    except FileNotFoundError:
        pytest.fail(f"{command[0]} is missing: install gcc and make (`make setup` does)")
    if done.returncode != 0:
        pytest.fail(f"cannot build a test's library: {' '.join(command)}\n{done.stderr}")
