"""The build: the same tree gives the same bytes, wherever it lies."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.one_file import TREE

EPOCH = "1700000000"


def build(tree: Path, output: Path) -> bytes:
    command = [sys.executable, "-I", str(tree / "packaging/build_zipapp.py")]
    done = subprocess.run(
        [*command, "--output", str(output), sys.executable],
        env=os.environ | {"SOURCE_DATE_EPOCH": EPOCH},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return output.read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_same_bytes_twice(tmp_path: Path) -> None:
    """Here, and in a copy at another place where everything is compiled anew."""
    copy = tmp_path / "a copy of the tree"
    unwanted = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", ".*_cache")
    shutil.copytree(TREE, copy, ignore=unwanted)
    for native in copy.glob("rfaas/*/*.so"):
        native.unlink()
    (copy / ".venv").symlink_to(TREE / ".venv")
    first = build(TREE, tmp_path / "first")
    (copy / "build/dist").mkdir(parents=True)
    (copy / "build/dist/wheels").symlink_to(TREE / "build/dist/wheels")
    second = build(copy, tmp_path / "second")
    assert len(first) == len(second)
    assert first == second


def test_a_python_that_cannot_be_built_for_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-I", str(TREE / "packaging/build_zipapp.py")]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "rfaas"), "/bin/true"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 70
    assert "/bin/true is no CPython 3.10 to 3.13" in done.stderr
    assert not (tmp_path / "rfaas").exists()
