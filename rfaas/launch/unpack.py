"""Unpacks an image, in the OCI image layout, into a tree: a process of its own.

    unpack LAYOUT TREE ARCHITECTURE DIGEST

Everything is checked by its digest on the way from DIGEST (or the layout's only manifest)
down.  Layers are applied inside the tree, as its root: a link that leads out leads nowhere.
Owners, devices and set-user bits are not kept: nobody in there is to be anybody else.
(OCI Image Specification 1.0: image-layout, manifest, layer with its whiteouts.)
"""

from __future__ import annotations

import ctypes
import gzip
import hashlib
import json
import os
import shutil
import stat
import sys
import tarfile
from contextlib import suppress
from typing import IO, Any

BLOB_MAX = 4 << 20  # of a manifest or configuration, in bytes
LAYERS_MAX = 512
ENTRIES_MAX = 2_000_000
CLONE_NEWUSER = 0x10000000  # linux/sched.h
WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"
EX_DATAERR, EX_OSERR = 65, 71


class ImageError(Exception):
    """The image cannot be used; the message says why."""


def main(words: list[str]) -> int:
    """Unpack; the exit status, with one line on stderr where it is not 0."""
    layout, tree, architecture, digest = words
    try:
        layers = _layers(layout, architecture, digest)
        files = [open(_blob_path(layout, one), "rb") for one, _ in layers]  # noqa: SIM115
        os.mkdir(tree, 0o755)
        _enter(tree)
        for file, (wanted, media) in zip(files, layers, strict=True):
            _apply(file, wanted, media)
    except ImageError as error:
        print(error, file=sys.stderr)
        return EX_DATAERR
    except (tarfile.TarError, EOFError, gzip.BadGzipFile) as error:
        print(f"a layer is damaged: {error}", file=sys.stderr)
        return EX_DATAERR
    except OSError as error:
        print(f"{error.filename or tree}: {error.strerror}", file=sys.stderr)
        return EX_OSERR
    return 0


def _blob_path(layout: str, digest: str) -> str:
    kind, _, value = digest.partition(":")
    if kind != "sha256" or len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise ImageError(f"digest {digest!r:.99} is not sha256")
    return f"{layout}/blobs/sha256/{value}"


def _json(layout: str, digest: str) -> dict[str, Any]:
    path = _blob_path(layout, digest)
    try:
        with open(path, "rb") as file:
            data = file.read(BLOB_MAX + 1)
    except FileNotFoundError:
        raise ImageError(f"{digest} is not in the layout at {layout}") from None
    if len(data) > BLOB_MAX or hashlib.sha256(data).hexdigest() != digest.partition(":")[2]:
        raise ImageError(f"{digest} in {layout} is not what its digest says")
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ImageError(f"{digest} in {layout} is no JSON object")
    return found


def _layers(layout: str, architecture: str, digest: str) -> list[tuple[str, str]]:
    """Digest and media type of each of the image's layers, lowest first."""
    manifest = _manifest(layout, architecture, digest or _only(layout))
    config = _json(layout, str(manifest.get("config", {}).get("digest")))
    found = str(config.get("architecture", ""))
    if found != architecture:
        kind = found or "no known architecture"
        raise ImageError(f"it is for {kind}, this node is {architecture}")
    layers = manifest.get("layers", [])
    if not isinstance(layers, list) or len(layers) > LAYERS_MAX:
        raise ImageError(f"it has more than {LAYERS_MAX} layers")
    return [(str(one.get("digest")), str(one.get("mediaType"))) for one in layers]


def _only(layout: str) -> str:
    """The one manifest of a layout that was made for us."""
    with open(f"{layout}/index.json", "rb") as file:
        (entry,) = json.load(file)["manifests"]
    return str(entry["digest"])


def _manifest(layout: str, architecture: str, digest: str) -> dict[str, Any]:
    found = _json(layout, digest)
    if "manifests" not in found:
        return found
    for entry in found["manifests"]:  # an image of several architectures
        platform = entry.get("platform", {})
        if platform.get("architecture") == architecture and platform.get("os") == "linux":
            return _json(layout, str(entry.get("digest")))
    kinds = {str(one.get("platform", {}).get("architecture")) for one in found["manifests"]}
    raise ImageError(f"it is for {', '.join(sorted(kinds))}, this node is {architecture}")


def _enter(tree: str) -> None:
    """Make the tree our root; who is not root becomes one of a user namespace for it."""
    import encodings.idna  # noqa: F401 - nothing can be imported in there

    user, group = os.geteuid(), os.getegid()
    if user:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWUSER):
            number = ctypes.get_errno()
            raise OSError(number, f"{os.strerror(number)} (a user namespace, to unpack in)")
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"0 {user} 1"),
            ("gid_map", f"0 {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    os.chroot(tree)
    os.chdir("/")


class _Hashed:
    """A file that is hashed as it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.sha256.update(data)
        return data


def _apply(layer: IO[bytes], digest: str, media: str) -> None:
    if "zstd" in media:
        raise ImageError("a layer is compressed by zstd, which is not supported; use gzip")
    hashed = _Hashed(layer)
    mode = "r|gz" if "gzip" in media else "r|"
    with tarfile.open(fileobj=hashed, mode=mode) as archive:  # type: ignore[call-overload]
        for count, entry in enumerate(archive):
            if count > ENTRIES_MAX:
                raise ImageError(f"a layer has more than {ENTRIES_MAX} entries")
            _extract(archive, entry)
    while hashed.read(1 << 20):  # what the archive's reader left
        pass
    if hashed.sha256.hexdigest() != digest.partition(":")[2]:
        raise ImageError(f"layer {digest} is not what its digest says")


def _extract(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> None:
    path = os.path.normpath("/" + entry.name)
    folder, name = os.path.split(path)
    if name == OPAQUE:
        for one in os.listdir(folder) if os.path.isdir(folder) else ():
            _remove(os.path.join(folder, one))
        return
    if name.startswith(WHITEOUT):
        _remove(os.path.join(folder, name.removeprefix(WHITEOUT)))
        return
    if path == "/":
        return
    try:
        os.makedirs(folder, exist_ok=True)
    except (FileExistsError, NotADirectoryError):  # a file of a lower layer has become a folder
        while not os.path.lexists(folder):
            folder = os.path.dirname(folder)
        _remove(folder)
        os.makedirs(os.path.dirname(path))
    mode = stat.S_IMODE(entry.mode) & 0o777
    if entry.isdir():
        if not os.path.isdir(path) or os.path.islink(path):
            _remove(path)
            os.mkdir(path)
        os.chmod(path, mode | 0o700)
    elif entry.isreg():
        _remove(path)
        source = archive.extractfile(entry)
        assert source is not None
        with open(path, "xb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
        os.chmod(path, mode | 0o400)
    elif entry.issym():
        _remove(path)
        os.symlink(entry.linkname, path)
    elif entry.islnk():
        _remove(path)
        os.link(os.path.normpath("/" + entry.linkname), path, follow_symlinks=False)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
        return
    with suppress(FileNotFoundError):
        os.unlink(path)
