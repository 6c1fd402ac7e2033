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


def build(tree: Path, output: Path, script: str = "build_zipapp.py", **more: str) -> bytes:
    command = [sys.executable, "-I", str(tree / "packaging" / script), "--output", str(output)]
    if script == "build_zipapp.py":
        command.append(sys.executable)
    done = subprocess.run(
        command,
        env=os.environ | {"SOURCE_DATE_EPOCH": EPOCH} | more,
        capture_output=True,
        text=True,
        check=False,
    )
    if "shared libpython" in done.stderr:
        pytest.skip("this Python has no shared libpython, which PyInstaller needs")
    assert done.returncode == 0, done.stderr
    return output.read_bytes()


def copy_of_the_tree(copy: Path) -> Path:
    """The tree at another place, where everything is compiled anew; what was fetched is shared."""
    unwanted = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", ".*_cache")
    shutil.copytree(TREE, copy, ignore=unwanted)
    for native in copy.glob("rfaas/*/*.so"):
        native.unlink()
    (copy / ".venv").symlink_to(TREE / ".venv")
    (copy / "build/dist").mkdir(parents=True)
    return copy


def share_what_was_fetched(copy: Path, *names: str) -> None:
    for name in names:
        (copy / "build/dist" / name).symlink_to(TREE / "build/dist" / name)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_same_bytes_twice(tmp_path: Path) -> None:
    copy = copy_of_the_tree(tmp_path / "a copy of the tree")
    first = build(TREE, tmp_path / "first")
    share_what_was_fetched(copy, "wheels")
    second = build(copy, tmp_path / "second")
    assert len(first) == len(second)
    assert first == second


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_binary_has_the_same_bytes_twice(tmp_path: Path) -> None:
    copy = copy_of_the_tree(tmp_path / "a copy of the tree")
    name = "rfaas-linux-x86_64"
    first = build(TREE, tmp_path / "first" / name, "build_binary.py")
    share_what_was_fetched(copy, "wheels", "pyinstaller")
    hashed = {"PYTHONHASHSEED": "7", "TZ": "Asia/Kathmandu"}
    second = build(copy, tmp_path / "second" / name, "build_binary.py", **hashed)
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
