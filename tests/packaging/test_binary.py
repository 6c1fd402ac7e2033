"""The binary does what the zipapp does, without Python."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from tests.harness.processes import Child, descendants
from tests.packaging.one_file import LIBRARY, Copy, require_private_mounts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture
def copied(binary: Path, tmp_path: Path) -> Copy:
    """A copy that unpacks into a directory of the test's own."""
    copy = Copy(binary, tmp_path, python="")
    (tmp_path / "tmp").mkdir()
    copy.environ["TMPDIR"] = str(tmp_path / "tmp")
    return copy


def test_call_with_a_private_executor(copied: Copy, seed: int) -> None:
    data = random.Random(seed).randbytes(200_000)
    done = copied.run("call", str(LIBRARY), "echo", "-", data=data)
    assert (done.status, done.err) == (0, "")
    assert done.out == data
    assert list((copied.folder / "tmp").iterdir()) == [], "what it unpacked is gone"


def test_serve_and_call(copied: Copy) -> None:
    role = Child(
        [str(copied.path), "serve", "--role", "all"], copied.environ, copied.folder / "log"
    )
    try:
        role.lines.until("executor ")
        done = copied.run("call", str(LIBRARY), "echo", "-", data=b"over there")
        assert (done.status, done.out) == (0, b"over there"), done.err
        role.signal(signal.SIGTERM)
        assert role.wait() == 0
        assert list((copied.folder / "tmp").iterdir()) == []
    finally:
        role.close()


def test_a_killed_one_leaves_its_directory_and_no_process(copied: Copy) -> None:
    """PyInstaller's loader removes what it unpacked when it ends; killed, it cannot."""
    role = Child(
        [str(copied.path), "serve", "--role", "executor", "--resource-manager", "none"],
        copied.environ,
        copied.folder / "log",
    )
    try:
        role.lines.until("executor ")
        children = list(descendants(role.pid))
        for pid in (role.pid, *children):
            os.kill(pid, signal.SIGKILL)
        role.wait()
        assert len(list((copied.folder / "tmp").iterdir())) == 1
    finally:
        role.close()


def test_noexec_tmp_wants_another_tmpdir(copied: Copy) -> None:
    require_private_mounts()
    noexec = copied.folder / "tmp"
    mounts = f"mount -t tmpfs -o noexec none {noexec}"
    done = copied.run_with_mounts(mounts, "--version")
    assert done.status != 0
    assert "failed to map segment" in done.err
    other = copied.folder / "other"
    other.mkdir()
    done = copied.run_with_mounts(mounts, "--version", environ={"TMPDIR": str(other)})
    assert (done.status, done.out[:6]) == (0, b"rfaas "), done.err


@pytest.mark.parametrize("part", [0.2, 0.6, 0.9999])
def test_cut_off(copied: Copy, part: float) -> None:
    data = copied.path.read_bytes()
    copied.path.write_bytes(data[: int(len(data) * part)])
    assert copied.run("call", str(LIBRARY), "echo").status != 0
