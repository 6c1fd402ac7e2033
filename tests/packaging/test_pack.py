"""`rfaas pack`: what it writes carries the configuration, and nothing that it should not."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tests.packaging.one_file import Copy, run

PRIVATE = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    file = tmp_path / "site.toml"
    file.write_text("[lane]\nslots = 7\n")
    return file


def slots(program: Path, environ: dict[str, str]) -> str:
    done = run([str(program), "config", "show"], environ=environ)
    assert done.status == 0, done.err
    (line,) = (line for line in done.out.decode().splitlines() if line.startswith("lane.slots "))
    return " ".join(line.split()[1:])


def test_carries_a_configuration(copy: Copy, site: Path) -> None:
    packed = copy.folder / "rfaas-site"
    done = copy.run("pack", "--config", str(site), "-o", str(packed))
    assert done.status == 0, done.err
    assert slots(packed, copy.environ) == "7 embedded in rfaas-site"
    assert slots(packed, copy.environ | {"RFAAS_LANE_SLOTS": "5"}).startswith("5 environment")
    assert slots(copy.path, copy.environ).endswith("default")
    with zipfile.ZipFile(packed) as archive:
        assert archive.testzip() is None
        assert archive.read("rfaas-site.toml") == site.read_bytes()


def test_packing_again_replaces(copy: Copy, site: Path) -> None:
    first, second, third = (copy.folder / name for name in ("first", "second", "third"))
    assert copy.run("pack", "--config", str(site), "-o", str(first)).status == 0
    site.write_text("[lane]\nslots = 9\n")
    done = run([str(first), "pack", "--config", str(site), "-o", str(second)], environ=copy.environ)
    assert done.status == 0, done.err
    assert slots(second, copy.environ) == "9 embedded in second"
    assert copy.run("pack", "--config", str(site), "-o", str(third)).status == 0
    assert second.read_bytes() == third.read_bytes(), "the same bytes, whatever was packed before"


def test_a_wrong_configuration_is_not_packed(copy: Copy, site: Path) -> None:
    site.write_text("[lane]\nslots = 7000\n")
    done = copy.run("pack", "--config", str(site), "-o", str(copy.folder / "packed"))
    assert done.status == 78
    assert "lane.slots" in done.err
    assert not (copy.folder / "packed").exists()


def test_private_keys_are_not_packed_unless_told_twice(copy: Copy, site: Path) -> None:
    key, packed = copy.folder / "key", copy.folder / "packed"
    key.write_text(PRIVATE)
    words = ("pack", "--config", str(site), "-o", str(packed), "--key-file", str(key))
    for flags in ((), ("--embed-private-key",), ("--yes-embed-private-key",)):
        done = copy.run(*words, *flags)
        assert (done.status, "private key" in done.err) == (2, True)
        assert not packed.exists()
    done = copy.run(*words, "--embed-private-key", "--yes-embed-private-key")
    assert done.status == 0, done.err
    assert packed.stat().st_mode & 0o077 == 0, "as private as the key in it"
    with zipfile.ZipFile(packed) as archive:
        assert archive.read("rfaas-site.key") == key.read_bytes()
    key.write_text("ssh-ed25519 AAAA public\n")
    assert copy.run(*words).status == 0


def test_a_private_key_in_the_configuration_is_refused(copy: Copy, site: Path) -> None:
    site.write_text("# " + PRIVATE.replace("\n", " "))
    done = copy.run("pack", "--config", str(site), "-o", str(copy.folder / "packed"))
    assert (done.status, "private key" in done.err) == (78, True), done.err


def test_places_that_cannot_be_written_or_read(copy: Copy, site: Path) -> None:
    done = copy.run("pack", "--config", str(site), "-o", "/proc/packed")
    assert (done.status, "cannot write /proc/packed" in done.err) == (2, True), done.err
    done = copy.run("pack", "--config", "/nonexistent", "-o", str(copy.folder / "packed"))
    assert done.status == 2
    done = copy.run("pack", "--config", str(site), "--base", str(site), "-o", "/proc/packed")
    assert (done.status, "damaged" in done.err) == (65, True), done.err


@pytest.mark.slow
def test_the_binary_packs_and_is_packed(copy: Copy, site: Path, binary: Path) -> None:
    packed, again = copy.folder / "packed", copy.folder / "again"
    done = copy.run("pack", "--config", str(site), "--base", str(binary), "-o", str(packed))
    assert done.status == 0, done.err
    assert slots(packed, copy.environ) == "7 embedded in packed"
    words = ["pack", "--config", str(site), "-o", str(again)]
    assert run([str(packed), *words], environ=copy.environ).status == 0
    assert again.read_bytes() == packed.read_bytes()
