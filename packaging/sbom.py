"""Writes what a one-file program carries as CycloneDX JSON, beside it: rfaas.cdx.json.

    .venv/bin/python packaging/sbom.py dist/rfaas dist/rfaas-linux-x86_64

It is read from the program itself, not from what the build meant to put in: the
licences that each carried package must bring name package and version; PyInstaller's
table of contents names shared libraries.  What else is known of a package comes from
the wheel that it was taken from.  No time and no random number: the same program
gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # -I leaves it out
import rdma_libraries

TREE = Path(__file__).resolve().parent.parent
WHEELS = TREE / "build/dist/wheels"
PYINSTALLER = TREE / "build/dist/pyinstaller"
NAMESPACE = uuid.UUID("6f1c7a51-5d0e-5b1c-9a53-1f0f4bb3a9d2")  # of our serial numbers, made up once
LICENCE = re.compile(r"licenses/([A-Za-z0-9_.]+)-([0-9][A-Za-z0-9_.]*)/")
LIBRARY = re.compile(r"(lib[a-z0-9._+-]+?)(?:-[0-9a-f]{8})?\.so\.([0-9.]+)$")  # libz.so.1

Component = dict[str, Any]


def document(program: Path) -> Component:
    """The whole document for a program."""
    data = program.read_bytes()
    facts = json.loads(
        subprocess.run([program, "version", "--json"], check=True, capture_output=True).stdout
    )
    components = sorted(
        zip_components(program)
        if zipfile.is_zipfile(program)
        else binary_components(program, facts),
        key=lambda component: str(component["bom-ref"]),
    )
    digest = hashlib.sha256(data).hexdigest()
    own = {
        "type": "application",
        "bom-ref": f"pkg:generic/rfaas@{facts['version']}",
        "name": "rfaas",
        "version": facts["version"],
        "licenses": [{"license": {"id": "BSD-3-Clause"}}],
        "hashes": [{"alg": "SHA-256", "content": digest}],
        "properties": [{"name": "rfaas:file", "value": program.name}],
    }
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, digest)}",
        "version": 1,
        "metadata": {"component": own},
        "components": components,
        "dependencies": [
            {"ref": own["bom-ref"], "dependsOn": [one["bom-ref"] for one in components]},
            *({"ref": one["bom-ref"], "dependsOn": []} for one in components),
        ],
    }


def zip_components(program: Path) -> Iterator[Component]:
    """Of the zipapp: packages; the interpreter and rdma-core are the node's own."""
    with zipfile.ZipFile(program) as archive:
        yield from packages(archive.namelist())


def binary_components(program: Path, facts: dict[str, Any]) -> Iterator[Component]:
    """Of the binary: packages, the interpreter, PyInstaller's loader, shared libraries."""
    sys.path.append(str(PYINSTALLER))
    from PyInstaller import __version__ as loader_version
    from PyInstaller.archive.readers import CArchiveReader

    archive = CArchiveReader(str(program))
    yield from packages(list(archive.toc))
    yield component("CPython", facts["python"], "generic", "PSF-2.0")
    yield component(
        "pyinstaller", loader_version, "pypi", "GPL-2.0-or-later WITH Bootloader-exception"
    )
    yield from rdma_components(archive)
    for name in archive.toc:
        if (match := LIBRARY.search(name)) and not match[1].startswith("libpython"):
            found = component(match[1], match[2], "generic", "")
            content = hashlib.sha256(archive.extract(name)).hexdigest()
            yield found | {"type": "library", "hashes": [{"alg": "SHA-256", "content": content}]}


def rdma_components(archive: Any) -> Iterator[Component]:
    """Of rdma-core and what it needs: each file, as their archive's own list has it."""
    if rdma_libraries.ARCHIVE not in archive.toc:
        return
    with zipfile.ZipFile(io.BytesIO(archive.extract(rdma_libraries.ARCHIVE))) as carried:
        for name, of in json.loads(carried.read(rdma_libraries.PACKAGES)).items():
            found = component(name.partition(".so")[0], of["version"], "generic", of["licence"])
            content = hashlib.sha256(carried.read(name)).hexdigest()
            yield found | {
                "description": f"{name}, of {of['source']}",
                "hashes": [{"alg": "SHA-256", "content": content}],
            }


def packages(names: list[str]) -> Iterator[Component]:
    """The packages whose licences are among the names of an archive's members."""
    for name, version in sorted(
        {match.groups() for text in names if (match := LICENCE.match(text))}
    ):
        about = metadata(name, version)
        expression = about.get("License-Expression") or about.get("License") or ""
        yield component(name, version, "pypi", expression) | (
            {"description": about["Summary"]} if about.get("Summary") else {}
        )


def metadata(name: str, version: str) -> dict[str, str]:
    """What a package's wheel says of it, as far as it is still there."""
    found = sorted(WHEELS.glob(f"{name}-{version}-*/{name}-{version}.dist-info/METADATA"))
    return dict(Parser().parsestr(found[0].read_text(), headersonly=True).items()) if found else {}


def component(name: str, version: str, kind: str, expression: str) -> Component:
    """One entry; `kind` is the type of its package URL."""
    url = f"pkg:{kind}/{name.lower()}@{version}"
    found: Component = {
        "type": "library",
        "bom-ref": url,
        "name": name,
        "version": version,
        "purl": url,
    }
    if expression:
        found["licenses"] = [{"expression": expression}]
    return found


def main() -> int:
    """One file beside each program named."""
    for program in map(Path, sys.argv[1:]):
        text = json.dumps(document(program.resolve()), indent=2) + "\n"
        target = program.with_name(f"{program.name}.cdx.json")
        target.write_text(text)
        print(f"dist: {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
