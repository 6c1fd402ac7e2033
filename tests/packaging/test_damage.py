"""A copy that was cut off or altered says so, as far as what was altered is used."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from rfaas.launch import embedded
from tests.packaging.one_file import LIBRARY, Copy

EX_DATAERR = 65
TAG = f"cp{sys.version_info[0]}{sys.version_info[1]}"


@pytest.fixture
def packed(copy: Copy) -> Copy:
    """A copy that carries a configuration."""
    site = copy.folder / "site.toml"
    site.write_text("[lane]\nslots = 7\n")
    done = copy.run("pack", "--config", str(site), "-o", str(copy.path))
    assert done.status == 0, done.err
    return copy


def call(copy: Copy) -> tuple[int, str]:
    done = copy.run("call", str(LIBRARY), "echo", "-", data=b"x")
    return done.status, done.err


@pytest.mark.parametrize("part", [0.3, 0.7, 0.9, 0.99, 0.9999])
def test_cut_off(packed: Copy, part: float) -> None:
    data = packed.path.read_bytes()
    packed.path.write_bytes(data[: int(len(data) * part)])
    status, text = call(packed)
    assert status == EX_DATAERR, text
    assert "damaged" in text
    assert "Traceback" not in text
    assert "hint: copy it again" in text


def test_one_byte_too_few_or_too_many(packed: Copy) -> None:
    data = packed.path.read_bytes()
    for wrong in (data[:-1], data + b"\n"):
        packed.path.write_bytes(wrong)
        status, text = call(packed)
        assert (status, "damaged" in text) == (EX_DATAERR, True), text


@pytest.mark.parametrize(
    "member",
    [
        f"{TAG}/rfaas-boot.pyc",
        f"{TAG}/rfaas/cli.pyc",
        f"{TAG}/rfaas-index",
        f"{TAG}/msgspec/_core.so",
        f"{TAG}/rfaas/native/_window.so",
        "rfaas-site.toml",
    ],
)
def test_one_bit_flipped(packed: Copy, member: str) -> None:
    flip(packed.path, member)
    status, text = call(packed)
    assert (status, "damaged" in text) == (EX_DATAERR, True), text
    assert "Traceback" not in text


@pytest.mark.parametrize("member", ["LICENSE", f"{TAG}/rfaas/native/_bench.so"])
def test_what_a_call_does_not_use_is_found_by_verify(packed: Copy, member: str) -> None:
    assert packed.run("version", "--verify").status == 0
    flip(packed.path, member)
    assert call(packed) == (0, "")
    done = packed.run("version", "--verify")
    assert (done.status, "damaged" in done.err) == (EX_DATAERR, True), done.err


@pytest.mark.parametrize("member", ["rfaas/admin/completion.py"])
def test_what_is_deflated_is_checked_when_it_is_used(packed: Copy, member: str) -> None:
    flip(packed.path, member)
    done = packed.run("completion", "bash")
    assert (done.status, "damaged" in done.err) == (EX_DATAERR, True), done.err
    assert "Traceback" not in done.err


def test_carried_by_a_newer_format(packed: Copy) -> None:
    data = bytearray(packed.path.read_bytes())
    data[-16:-12] = (embedded.FORMAT + 1).to_bytes(4, "little")
    packed.path.write_bytes(data)
    status, text = call(packed)
    assert status == 78
    assert f"is of format {embedded.FORMAT + 1}, this rfaas reads up to {embedded.FORMAT}" in text


def test_pack_refuses_a_damaged_program(packed: Copy) -> None:
    flip(packed.path, "LICENSE")
    site = packed.folder / "site.toml"
    done = packed.run("pack", "--config", str(site), "-o", str(packed.folder / "again"))
    assert (done.status, "damaged" in done.err) == (EX_DATAERR, True), done.err
    assert not (packed.folder / "again").exists()


def flip(path: Path, member: str) -> None:
    """Flip one bit in the middle of a member."""
    with zipfile.ZipFile(path) as archive, path.open("r+b") as file:
        info = archive.getinfo(member)
        file.seek(info.header_offset + 26)
        lengths = file.read(4)  # of name and extra field, APPNOTE 4.3.7
        skipped = sum(int.from_bytes(lengths[at : at + 2], "little") for at in (0, 2))
        at = info.header_offset + 30 + skipped + info.compress_size // 2
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))
