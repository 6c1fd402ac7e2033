"""rdma-core for the binary, taken from the Debian that builds it: for nodes that have none.

Only what rFaaS calls: libibverbs, librdmacm, what they need, and drivers (PROVIDERS).
rfaas/diagnose/rdma_core.py loads them, from a folder of their own, where the system has
none.  libibverbs is changed in one place: it does not read /etc/libibverbs.d, which is
about the system's drivers, and says so on stderr where that is missing.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import parts

FOLDER = "rdma-core"
PACKAGES = "packages.json"  # in it, for packaging/sbom.py
PLACE = Path("/usr/lib/x86_64-linux-gnu")
PROVIDERS = ("efa", "irdma", "mlx5", "rxe", "siw")
LIBRARIES = {  # by name: the package, whose copyright is carried along
    "libnl-3.so.200": "libnl-3-200",
    "libnl-route-3.so.200": "libnl-route-3-200",
    "libibverbs.so.1": "libibverbs1",
    "librdmacm.so.1": "librdmacm1",
}
# By the source package, as its copyright file has it.
LICENCES = {"libnl": "LGPL-2.1-only", "rdma-core": "GPL-2.0-only OR Linux-OpenIB"}
CONFIG_FOLDER = b"/etc/libibverbs.d\0"
EMPTY_FOLDER = b"/sys/class\0"  # of no regular files, and there wherever a device is


def stage(folder: Path, licences: Path) -> None:
    """Put them into `folder`, and their licences below `licences`; none where there are none.

    Raises:
        BuildError: they are there in part, or are not what is known here.
    """
    if not (PLACE / "libibverbs.so.1").exists() or not shutil.which("dpkg-query"):
        parts.say("no rdma-core of Debian's here: the binary carries none")
        folder.mkdir()
        return
    folder.mkdir()
    files: dict[str, list[str]] = {source: [] for source in LICENCES}
    for name in LIBRARIES:
        real = _existing(PLACE / name).resolve()
        shutil.copy(real, folder)
        files["libnl" if name.startswith("libnl") else "rdma-core"].append(real.name)
    for provider in PROVIDERS:
        found = sorted((PLACE / "libibverbs").glob(f"lib{provider}-rdmav*.so"))
        if len(found) != 1:
            raise parts.BuildError(
                f"no driver {provider} in {PLACE}/libibverbs: apt-get install ibverbs-providers"
            )
        shutil.copy(found[0], folder)
        files["rdma-core"].append(found[0].name)
    parts.strip(folder)
    (verbs,) = folder.glob("libibverbs.so.*")
    verbs.write_bytes(_without_config_folder(verbs.read_bytes()))
    packages = [
        {
            "name": source,
            "version": _version("libnl-3-200" if source == "libnl" else "libibverbs1"),
            "licence": LICENCES[source],
            "files": sorted(names),
        }
        for source, names in files.items()
    ]
    (folder / PACKAGES).write_text(json.dumps(packages))
    for source, package in (("libnl", "libnl-3-200"), ("rdma-core", "libibverbs1")):
        (licences / source).mkdir(parents=True)
        shutil.copy(_existing(Path("/usr/share/doc", package, "copyright")), licences / source)
    # The text that libnl's names and does not have.
    shutil.copy(_existing(Path("/usr/share/common-licenses/LGPL-2.1")), licences / "libnl")


def _existing(path: Path) -> Path:
    if not path.exists():
        raise parts.BuildError(f"no {path}: apt-get install librdmacm1 ibverbs-providers")
    return path


def _version(package: str) -> str:
    """Upstream's, of an installed package: "44.0"."""
    command = ["dpkg-query", "-W", "-f", "${Version}\n", package]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise parts.BuildError(f"no package {package}, and yet its files: {run.stderr}")
    return re.sub(r"-[^-]*$", "", run.stdout.split()[0])


def _without_config_folder(data: bytes) -> bytes:
    """libibverbs that takes its drivers from the environment alone."""
    if data.count(CONFIG_FOLDER) != 1:
        raise parts.BuildError(
            f"libibverbs names {CONFIG_FOLDER!r} {data.count(CONFIG_FOLDER)} times, not once"
        )
    return data.replace(CONFIG_FOLDER, EMPTY_FOLDER.ljust(len(CONFIG_FOLDER), b"\0"))
