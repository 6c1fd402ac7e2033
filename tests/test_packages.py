"""What goes along with the one-file programs: the list of what they carry, the Debian package."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import re
import shutil
import subprocess
import sys
import uuid
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

import rfaas

TREE = Path(__file__).resolve().parent.parent

PROGRAM = """#!/bin/sh
echo '{{"version": "{version}", "python": "3.11.2"}}'
exit
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A shell script that is a zip as well, as the zipapp is."""
    members = io.BytesIO()
    with zipfile.ZipFile(members, "w") as archive:
        for name in (
            "LICENSE",
            "licenses/msgpack-1.2.4/COPYING",
            "licenses/msgspec-0.22.0/LICENSE",
        ):
            archive.writestr(zipfile.ZipInfo(name), b"text")
    file = tmp_path / "rfaas"
    file.write_bytes(PROGRAM.format(version=rfaas.__version__).encode() + members.getvalue())
    file.chmod(0o755)
    return file


def builder(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    """A module of packaging/, which is no package."""
    monkeypatch.syspath_prepend(str(TREE / "packaging"))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    return importlib.import_module(name)


# What is carried ------------------------------------------------------------


def test_the_document_is_what_cyclonedx_asks_for(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbom = builder(monkeypatch, "sbom")
    made = sbom.document(program)
    assert (made["bomFormat"], made["specVersion"], made["version"]) == ("CycloneDX", "1.5", 1)
    # The schema's own pattern of a serial number.
    assert uuid.UUID(made["serialNumber"].removeprefix("urn:uuid:")).version == 5
    own = made["metadata"]["component"]
    assert (own["type"], own["name"], own["version"]) == ("application", "rfaas", rfaas.__version__)
    assert own["hashes"] == [
        {"alg": "SHA-256", "content": hashlib.sha256(program.read_bytes()).hexdigest()}
    ]
    for one in made["components"]:
        assert {"type", "name", "version", "purl", "bom-ref"} <= set(one)
        assert one["type"] == "library"
        assert re.fullmatch(r"pkg:[a-z]+/[a-z0-9._-]+@[0-9][a-z0-9._-]*", one["purl"])
        assert one["bom-ref"] == one["purl"]
    refs = [own["bom-ref"], *(one["bom-ref"] for one in made["components"])]
    assert len(set(refs)) == len(refs)
    assert [entry["ref"] for entry in made["dependencies"]] == refs
    assert made["dependencies"][0]["dependsOn"] == refs[1:]


def test_it_names_what_the_program_carries(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = builder(monkeypatch, "sbom").document(program)
    assert [(one["name"], one["version"]) for one in made["components"]] == [
        ("msgpack", "1.2.4"),
        ("msgspec", "0.22.0"),
    ]


def test_the_same_program_gives_the_same_bytes(program: Path) -> None:
    target = program.with_name("rfaas.cdx.json")
    found = []
    for _ in range(2):
        command = [sys.executable, str(TREE / "packaging/sbom.py"), str(program)]
        subprocess.run(command, check=True, capture_output=True)
        found.append(target.read_bytes())
        target.unlink()
    assert found[0] == found[1]
    assert json.loads(found[0])["bomFormat"] == "CycloneDX"


def test_shared_libraries_are_told_from_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    library = builder(monkeypatch, "sbom").LIBRARY
    found = {
        name: match.groups() if (match := library.search(name)) else None
        for name in ("libz.so.1", "libibverbs-0a1b2c3d.so.1.14.44.0", "_struct.so", "x.py")
    }
    assert found == {
        "libz.so.1": ("libz", "1"),
        "libibverbs-0a1b2c3d.so.1.14.44.0": ("libibverbs", "1.14.44.0"),
        "_struct.so": None,
        "x.py": None,
    }


# rdma-core for the binary -------------------------------------------------------


def test_all_of_rdma_core_and_the_same_bytes_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries = builder(monkeypatch, "rdma_libraries")
    found = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        libraries.stage(folder, folder / "licenses")
        if not (folder / libraries.ARCHIVE).exists():
            pytest.skip("no rdma-core here: apt-get install librdmacm1 ibverbs-providers")
        found.append((folder / libraries.ARCHIVE).read_bytes())
    assert found[0] == found[1]
    with zipfile.ZipFile(io.BytesIO(found[0])) as archive:
        names = [name for name in archive.namelist() if name != libraries.PACKAGES]
        packages = json.loads(archive.read(libraries.PACKAGES))
    assert list(packages) == names
    # In the order in which they need each other, drivers last.
    first = [name.partition(".so")[0] for name in names[:4]]
    assert first == ["libnl-3", "libnl-route-3", "libibverbs", "librdmacm"]
    assert len(names) > 4
    assert all("-rdmav" in name for name in names[4:])
    licences = {file.parent.name for file in (tmp_path / "first/licenses").rglob("copyright")}
    assert licences == {package["source"] for package in packages.values()}


def test_part_of_rdma_core_is_not_carried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    libraries = builder(monkeypatch, "rdma_libraries")
    place = tmp_path / "lib"
    place.mkdir()
    for name in libraries.LIBRARIES:
        (place / name).touch()
    monkeypatch.setattr(libraries, "PLACE", place)
    libraries.stage(tmp_path, tmp_path / "licenses")
    said = capsys.readouterr().out
    assert f"no {place}/libibverbs/*-rdmav*.so: the binary carries no rdma-core" in said
    assert "hint: apt-get install librdmacm1 ibverbs-providers" in said
    assert not (tmp_path / libraries.ARCHIVE).exists()
    assert not (tmp_path / "licenses").exists()


# The Debian package -----------------------------------------------------------

needs_dpkg = pytest.mark.skipif(
    shutil.which("dpkg-deb") is None, reason="no dpkg-deb: apt-get install dpkg"
)


@needs_dpkg
def test_the_package(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_deb = builder(monkeypatch, "build_deb")
    package = build_deb.build(program, tmp_path)
    assert package.name == f"rfaas_{rfaas.__version__}_amd64.deb"
    root = tmp_path / "root"
    subprocess.run(["dpkg-deb", "-x", package, root], check=True)
    assert (root / "usr/bin/rfaas").read_bytes() == program.read_bytes()
    assert (root / "usr/bin/rfaas").stat().st_mode & 0o777 == 0o755
    assert (root / "etc/rfaas/rfaas.toml").read_text() == (TREE / "etc/rfaas.toml").read_text()
    for role in ("executor", "resource-manager"):
        unit = f"rfaas-{role}.service"
        assert (root / "lib/systemd/system" / unit).read_text() == (
            (TREE / "packaging/systemd" / unit).read_text()
        )
    assert (root / "usr/lib/sysusers.d/rfaas.conf").exists()
    assert (root / "usr/share/man/man1/rfaas-serve.1.gz").exists()
    assert (root / "usr/share/bash-completion/completions/rfaas").exists()

    control = tmp_path / "control"
    subprocess.run(["dpkg-deb", "-e", package, control], check=True)
    assert (control / "conffiles").read_text() == "/etc/rfaas/rfaas.toml\n"
    for name in ("postinst", "prerm", "postrm"):
        subprocess.run(["sh", "-n", control / name], check=True)
        assert (control / name).stat().st_mode & 0o111

    first = package.read_bytes()
    assert build_deb.build(program, tmp_path).read_bytes() == first


# The image --------------------------------------------------------------------


def test_the_containerfile_runs_what_it_copies() -> None:
    """Nothing builds it here; what can be wrong without a builder is looked at."""
    text = (TREE / "packaging/Containerfile").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    copied = next(line.split()[-1] for line in lines if line.startswith("COPY"))
    entry = next(line for line in lines if line.startswith("ENTRYPOINT"))
    assert json.loads(entry.removeprefix("ENTRYPOINT ")) == [copied]
    declared = {line.split()[1].partition("=")[0] for line in lines if line.startswith("ARG")}
    assert set(re.findall(r"\$\{?([A-Z]+)\}?", "\n".join(lines))) <= declared
    # An argument before FROM is for FROM alone.
    assert lines[0].startswith("ARG BASE=")
    assert lines[1] == "FROM ${BASE}"
