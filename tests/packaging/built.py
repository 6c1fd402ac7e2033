"""The one file, built once for all tests that take it, from this tree as it is now."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.packaging.one_file import TREE


@pytest.fixture(scope="session")
def program() -> Path:
    """build/dist/test/rfaas: the zipapp, for the Python that runs the tests."""
    return _built("rfaas", "build_zipapp.py", sys.executable)


@pytest.fixture(scope="session")
def binary() -> Path:
    """build/dist/test/rfaas-linux-x86_64: the binary, with the Python that runs the tests."""
    return _built("rfaas-linux-x86_64", "build_binary.py")


@cache
def _built(name: str, script: str, *arguments: str) -> Path:
    output = TREE / "build/dist/test" / name
    command = [sys.executable, "-I", str(TREE / "packaging" / script), "--output", str(output)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    if "shared libpython" in done.stderr:
        pytest.skip("this Python has no shared libpython, which PyInstaller needs")
    assert done.returncode == 0, done.stderr
    return output
