"""The binary does what the zipapp does, without Python."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from rfaas.launch import embedded
from tests.harness.images import OURS, Layout, layer
from tests.harness.processes import Child, descendants
from tests.packaging.one_file import LIBRARY, Copy, require_private_mounts

EX_DATAERR = 65
EX_OSERR = 71
EX_CONFIG = 78
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


def test_it_unpacks_images_itself(copied: Copy, tmp_path: Path) -> None:
    """What rfaas/launch/images.py starts: there is no Python to run it."""
    layout = Layout(tmp_path / "layout", [layer({"etc/motd": b"hello"})])
    tree = tmp_path / "tree"
    words = ("--unpack-image", str(layout.path), str(tree), OURS)
    done = copied.run(*words, layout.digest)
    assert (done.status, done.err) == (0, "")
    assert (tree / "etc/motd").read_bytes() == b"hello"
    done = copied.run(*words, "sha256:" + "0" * 64)
    assert done.status == EX_DATAERR
    assert "is not in the layout" in done.err


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


NO_PROC = "mount -t tmpfs none /proc"


def tmpfs(path: Path | str, options: str) -> str:
    return f"mount -t tmpfs -o {options} none {path}"


def unpacks(mounts: str, copied: Copy) -> None:
    """It runs where these mounts are."""
    done = copied.run_with_mounts(mounts, "call", str(LIBRARY), "echo", "-", data=b"all the same")
    assert (done.status, done.out) == (0, b"all the same"), done.err


@pytest.mark.parametrize("options", ["noexec", "ro", "size=1m"], ids=["noexec", "ro", "full"])
def test_a_tmpdir_that_cannot_be_used_is_passed_over(copied: Copy, options: str) -> None:
    require_private_mounts()
    unpacks(tmpfs(copied.folder / "tmp", options), copied)


def test_noexec_tmp_and_read_only_home_do_no_harm(copied: Copy) -> None:
    """As where only memory can be written to and run from."""
    require_private_mounts()
    del copied.environ["TMPDIR"]
    kept = copied.folder / "kept"
    kept.mkdir()
    for file in (copied.path, LIBRARY):
        (kept / file.name).write_bytes(file.read_bytes())
        (kept / file.name).chmod(0o755)
    mounts = [f"mount --bind {kept} /mnt", tmpfs(copied.home, "ro")]
    mounts += [tmpfs(place, "noexec") for place in ("/tmp", "/var/tmp")]
    script = "\n".join((*mounts, 'shift; set -- /mnt/rfaas "$@"'))
    words = ("call", f"/mnt/{LIBRARY.name}", "echo", "-")
    environ = {"RFAAS_RUNTIME_DIR": "/tmp/run"}
    done = copied.run_with_mounts(script, *words, data=b"read-only", environ=environ)
    assert (done.status, done.out) == (0, b"read-only"), done.err


def test_no_place_to_unpack_says_which_were_tried(copied: Copy) -> None:
    require_private_mounts()
    kept = copied.folder / "kept"
    kept.mkdir()
    (kept / "rfaas").write_bytes(copied.path.read_bytes())
    (kept / "rfaas").chmod(0o755)
    mounts = [f"mount --bind {kept} /mnt", tmpfs("/media", "size=1m")]
    mounts += [tmpfs(place, "noexec") for place in ("/tmp", "/dev/shm")]
    mounts += [tmpfs("/var/tmp", "ro")]
    script = "\n".join((*mounts, 'shift; set -- /mnt/rfaas "$@"'))
    environ = {"TMPDIR": "/nonexistent", "HOME": "/media"}
    done = copied.run_with_mounts(script, "--version", environ=environ)
    assert done.status == EX_OSERR, done.err
    for line in (
        "/nonexistent: No such file or directory",
        "/tmp: mounted noexec",
        "/var/tmp: Read-only file system",
        "/media: full",
        "hint: set TMPDIR",
    ):
        assert line in done.err
    assert "PYI" not in done.err


def test_without_proc_it_runs_as_far_as_a_worker(copied: Copy) -> None:
    done = copied.run_with_mounts(NO_PROC, "config", "show")
    assert (done.status, done.err) == (0, "")
    done = copied.run_with_mounts(NO_PROC, "call", str(LIBRARY), "echo")
    assert done.status == EX_OSERR, done.err
    assert "this node has no /proc" in done.err


@pytest.mark.parametrize("part", [0.2, 0.6, 0.9999])
def test_cut_off(copied: Copy, part: float) -> None:
    data = copied.path.read_bytes()
    copied.path.write_bytes(data[: int(len(data) * part)])
    assert_damaged(copied)


@pytest.mark.parametrize("part", [0.02, 0.2, 0.6, 0.9999])
def test_one_bit_flipped(copied: Copy, part: float) -> None:
    data = bytearray(copied.path.read_bytes())
    data[int(len(data) * part)] ^= 0x10
    copied.path.write_bytes(data)
    assert_damaged(copied)


def assert_damaged(copied: Copy) -> None:
    done = copied.run("call", str(LIBRARY), "echo")
    assert done.status == EX_DATAERR, done.err
    assert f"{copied.path} is damaged" in done.err
    assert "hint: copy it again" in done.err
    assert "PYI" not in done.err


def test_what_is_carried_is_checked_too(copied: Copy) -> None:
    site = copied.folder / "site.toml"
    site.write_text("[lane]\nslots = 7\n")
    words = ("pack", "--config", str(site), "-o", str(copied.path))
    assert copied.run(*words).status == 0
    whole = copied.path.read_bytes()
    assert copied.run("call", str(LIBRARY), "echo").status == 0
    at = whole.rindex(b"slots = 7")
    copied.path.write_bytes(whole[:at] + b"slots = 8" + whole[at + 9 :])
    assert_damaged(copied)
    newer = bytearray(whole)
    newer[-16:-12] = (embedded.FORMAT + 1).to_bytes(4, "little")
    copied.path.write_bytes(newer)
    done = copied.run("config", "show")
    assert done.status == EX_CONFIG
    assert f"is of format {embedded.FORMAT + 1}, this rfaas reads up to" in done.err
