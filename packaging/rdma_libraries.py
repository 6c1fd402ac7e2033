"""rdma-core for the binary, taken from the Debian that builds it: for nodes that have none.

What rFaaS calls, which is libibverbs and librdmacm, what they need, and all drivers of
Debian's ibverbs-providers, in one archive that is unpacked where the system has none
(rfaas/diagnose/rdma_core.py).  A machine that lacks any of it builds a binary without.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import parts

ARCHIVE = "rdma-core.zip"
PACKAGES = "packages.json"  # in it, for packaging/sbom.py
PLACE = Path("/usr/lib/x86_64-linux-gnu")
LIBRARIES = {  # in the order in which they are loaded: Debian's package by the file's name
    "libnl-3.so.200": "libnl-3-200",
    "libnl-route-3.so.200": "libnl-route-3-200",
    "libibverbs.so.1": "libibverbs1",
    "librdmacm.so.1": "librdmacm1",
}
DRIVERS = "libibverbs/*-rdmav*.so"
# By the source package, as its copyright file has it.
LICENCES = {"libnl3": "LGPL-2.1-only", "rdma-core": "GPL-2.0-only OR Linux-OpenIB"}
LGPL = Path("/usr/share/common-licenses/LGPL-2.1")  # libnl3's own copyright file only names it


def stage(folder: Path, licences: Path) -> None:
    """Put ARCHIVE into `folder`, and what it carries' licences below `licences`.

    Neither where this machine has not all of it, which is said.
    """
    files = {PLACE / name: package for name, package in LIBRARIES.items()}
    files |= dict.fromkeys(sorted(PLACE.glob(DRIVERS)), "ibverbs-providers")
    lacking = [str(file) for file in files if not file.exists()]
    if len(files) == len(LIBRARIES):
        lacking.append(f"{PLACE}/{DRIVERS}")
    copyrights = {
        package: Path("/usr/share/doc", package, "copyright") for package in files.values()
    }
    lacking += [str(file) for file in (*copyrights.values(), LGPL) if not file.exists()]
    if lacking:
        parts.say(f"no {lacking[0]}: the binary carries no rdma-core")
        parts.say("hint: apt-get install librdmacm1 ibverbs-providers")
        return
    unpacked = folder / "rdma-core"
    unpacked.mkdir()
    carried: dict[str, dict[str, object]] = {}
    for file, package in files.items():
        # Libraries by their full name, which has the version; drivers by their own.
        name = file.resolve().name if package != "ibverbs-providers" else file.name
        shutil.copy(file, unpacked / name)
        source, version = _source_of(package)
        carried[name] = {"source": source, "version": version, "licence": LICENCES[source]}
        (licences / source).mkdir(parents=True, exist_ok=True)
        shutil.copy(copyrights[package], licences / source)
    shutil.copy(LGPL, licences / "libnl3")
    parts.strip(unpacked)
    with ZipFile(folder / ARCHIVE, "w") as archive:
        for name in carried:
            _add(archive, name, (unpacked / name).read_bytes())
        _add(archive, PACKAGES, json.dumps(carried, indent=1).encode())


def _add(archive: ZipFile, name: str, data: bytes) -> None:
    archive.writestr(ZipInfo(name), data, ZIP_DEFLATED, compresslevel=9)  # ZipInfo: always 1980


def _source_of(package: str) -> tuple[str, str]:
    """The name of an installed package's source, and upstream's version: ("rdma-core", "44.0").

    Raises:
        BuildError: Debian does not know it, though its files are there.
    """
    command = ["dpkg-query", "-W", "-f", "${source:Package} ${source:Upstream-Version}", package]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise parts.BuildError(f"no package {package}, and yet its files: {error}") from None
    source, version = run.stdout.split()
    if source not in LICENCES:
        raise parts.BuildError(f"{package} is of {source}; known are {', '.join(LICENCES)}")
    return source, version
