"""A small image, made here: the C library and what C++ needs, in the OCI image layout.

No registry and no builder is asked; the bytes are those of this machine.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

LIBRARIES = (
    *("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1"),
    *("libgcc_s.so.1", "libstdc++.so.6"),
)
OURS = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
OTHER = {"amd64": "arm64", "arm64": "amd64"}[OURS]
MEDIA = "application/vnd.oci.image"


def system_libraries() -> dict[str, bytes]:
    """What any function needs, by path in the image."""
    maps = Path("/proc/self/maps").read_text()
    loader = next(word for line in maps.splitlines() if "/ld-" in (word := line.split()[-1]))
    text = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    known: dict[str, str] = {}
    for line in text.splitlines():
        name, arrow, path = line.strip().partition(" => ")
        if arrow and "x86-64" in name + OURS.replace("amd64", "x86-64"):
            known.setdefault(name.split()[0], path)
    found = {"lib64/" + os.path.basename(interpreter()): Path(loader).read_bytes()}
    for name in LIBRARIES:
        if name in known:
            found["lib/" + name] = Path(known[name]).read_bytes()
            found["lib64/" + name] = found["lib/" + name]
    return found


def interpreter() -> str:
    """The path of the dynamic loader, as programs of this machine name it."""
    with open(sys.executable, "rb") as file:
        data = file.read(4096)
    start = data.index(b"/lib")
    return data[start : data.index(b"\0", start)].decode()


def layer(files: Mapping[str, bytes], extra: Iterable[tarfile.TarInfo] = ()) -> bytes:
    """A layer with these files, and entries without content as they are."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name in ("proc", "dev", "tmp", "etc"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            archive.addfile(entry, io.BytesIO(data))
        for entry in extra:
            archive.addfile(entry)
    return gzip.compress(raw.getvalue(), mtime=0)


class Layout:
    """An image in a folder; `reference` is what a lease names it by."""

    def __init__(self, path: Path, layers: Iterable[bytes], architecture: str = OURS) -> None:
        self.path = path
        (path / "blobs/sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        blobs = list(layers)
        config = {
            "architecture": architecture,
            "os": "linux",
            "config": {},
            "rootfs": {
                "type": "layers",
                "diff_ids": [_digest(gzip.decompress(one)) for one in blobs],
            },
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{MEDIA}.manifest.v1+json",
            "config": self.put(_json(config), f"{MEDIA}.config.v1+json"),
            "layers": [self.put(one, f"{MEDIA}.layer.v1.tar+gzip") for one in blobs],
        }
        entry = self.put(_json(manifest), f"{MEDIA}.manifest.v1+json")
        self.digest = entry["digest"]
        index = {"schemaVersion": 2, "manifests": [entry]}
        (path / "index.json").write_bytes(_json(index))

    @property
    def reference(self) -> str:
        """The image as a lease names it, where the layout is on the node."""
        return f"oci:{self.path}@{self.digest}"

    def put(self, data: bytes, media: str) -> dict[str, Any]:
        """Add a blob; its descriptor."""
        digest = _digest(data)
        self.blob(digest).write_bytes(data)
        return {"mediaType": media, "digest": digest, "size": len(data)}

    def blob(self, digest: str) -> Path:
        """The file of a blob."""
        return self.path / "blobs/sha256" / digest.partition(":")[2]


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
