"""The one file, built once for all tests here, for the Python that runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.one_file import TREE, Copy


@pytest.fixture(scope="session")
def program() -> Path:
    """build/dist/test/rfaas: from this tree as it is now."""
    output = TREE / "build/dist/test/rfaas"
    command = [sys.executable, "-I", str(TREE / "packaging/build_zipapp.py")]
    done = subprocess.run(
        [*command, "--output", str(output), sys.executable],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture
def copy(program: Path, tmp_path: Path) -> Copy:
    """A copy in a directory of its own."""
    return Copy(program, tmp_path)


@pytest.fixture(scope="session")
def binary() -> Path:
    """build/dist/test/rfaas-linux-x86_64: the binary, with the Python that runs the tests."""
    output = TREE / "build/dist/test/rfaas-linux-x86_64"
    command = [sys.executable, "-I", str(TREE / "packaging/build_binary.py")]
    done = subprocess.run(
        [*command, "--output", str(output)], capture_output=True, text=True, check=False
    )
    if "shared" in done.stderr:
        pytest.skip("this Python has no shared libpython, which PyInstaller needs")
    assert done.returncode == 0, done.stderr
    return output
