"""`rfaas pack`: a copy of this program that carries a configuration.

Both forms of the one file keep what is carried behind their code, with the
footer of `launch/embedded.py` at the end.  In the zipapp they are members of the
zip (`unzip -p rfaas-site rfaas-site.toml`); behind the binary they are bytes,
which its own loader skips.  Packing a packed file replaces what it carries.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from binascii import crc32
from contextlib import suppress
from typing import TYPE_CHECKING

from rfaas import config
from rfaas.errors import ConfigError, UsageError
from rfaas.launch import embedded
from rfaas.launch.embedded import FOOTER_BYTES, KEY_BYTES_MAX, NO_PART, Footer

if TYPE_CHECKING:
    import argparse

CONFIG_MEMBER = "rfaas-site.toml"
KEY_MEMBER = "rfaas-site.key"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the same configuration gives the same bytes
END_BYTES = 22  # the end of a zip without its comment, APPNOTE 4.3.16

PRIVATE_SIGNS = (b"PRIVATE KEY", b"AGE-SECRET-KEY-", b"PuTTY-User-Key-File")
CLUSTER_KEY_DIGITS = 64  # control/cluster_key.py: nothing else, and as private


def run(options: argparse.Namespace) -> int:
    """Write the copy; returns the exit status.

    Raises:
        ConfigError: the configuration is wrong.
        UsageError: nothing to copy, a private key that was not asked for twice, or no place
            to write to.
        DamagedError: what is to be copied is not what was built.
    """
    toml = _read(options.config, "configuration", embedded.CONFIG_BYTES_MAX)
    # Checked alone: neither flags nor this machine's environment go along.
    config.load(environ={}, embedded=(os.path.basename(options.config), toml))
    if _is_private(toml):
        raise ConfigError(
            f"{options.config} holds a private key, and whoever has the program could read it",
            hint="keep it in a file of its own on the nodes that need it",
        )
    key = _read(options.key_file, "key", KEY_BYTES_MAX) if options.key_file else b""
    if _is_private(key) and not (options.embed_private_key and options.yes_embed_private_key):
        raise UsageError(
            f"{options.key_file} is a private key, and whoever has the program could read it",
            hint="give its public half, or, to embed it all the same, "
            "both --embed-private-key and --yes-embed-private-key",
        )
    base = options.base or embedded.one_file() or _built()
    embedded.verify(base)
    with open(base, "rb") as file:
        footer = embedded.footer_of(file, base)
        file.seek(0)
        packed = _packed(file.read(), footer, toml, key)
    # A key in it makes the file as private as the key.
    _write(options.output, packed, 0o700 if _is_private(key) else 0o755)
    size = len(packed) / 1e6
    name = os.path.basename(options.output)
    carries = "this configuration and key" if key else "this configuration"
    print(f"{options.output}: {size:.1f} MB, carries {carries}")
    print(f"next: copy it to a node, and there: ./{name} serve --role executor")
    return 0


def _packed(data: bytes, footer: Footer, toml: bytes, key: bytes) -> bytes:
    base = data[: footer.base]
    parts = ((CONFIG_MEMBER, toml), (KEY_MEMBER, key))
    if data[-FOOTER_BYTES - END_BYTES :][:4] == b"PK\5\6":
        content, offsets = _with_members(data[:-FOOTER_BYTES], footer.base, parts)
    else:
        content, offsets = base + toml + key, [len(base), len(base) + len(toml)]
    found = [
        (offset, len(part), crc32(part)) if part else NO_PART
        for offset, (_, part) in zip(offsets, parts, strict=True)
    ]
    digest = hashlib.sha256(content).digest()
    length = len(content) + FOOTER_BYTES
    return content + Footer(footer.base, found[0], found[1], length, digest).encode()


def _with_members(
    data: bytes, base: int, parts: tuple[tuple[str, bytes], ...]
) -> tuple[bytes, list[int]]:
    """The zip with these members in place of those that it carried; where their bytes begin."""
    file = io.BytesIO(data[:-2] + b"\0\0")  # the footer, its comment, comes anew
    offsets = []
    with zipfile.ZipFile(file, "a") as archive:
        # Ours are the last, from `base` on, so that they go with the directory behind them.
        for info in [one for one in archive.filelist if one.header_offset >= base]:
            archive.filelist.remove(info)
            del archive.NameToInfo[info.filename]
        archive.start_dir = base
        for name, content in parts:
            if content:
                info = zipfile.ZipInfo(name, EPOCH)
                info.external_attr = 0o100644 << 16
                archive.writestr(info, content)
            offsets.append(archive.start_dir - len(content))
        archive._didModify = True  # type: ignore[attr-defined]
    content = file.getvalue()
    end = content.rindex(b"PK\5\6") + END_BYTES
    return content[: end - 2] + FOOTER_BYTES.to_bytes(2, "little"), offsets


def _built() -> str:
    """From a source tree: what `make dist` has built."""
    tree = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = os.path.join(tree, "dist", "rfaas")
    if not os.path.exists(path):
        raise UsageError(
            f"this rfaas runs from a source tree, and there is no {path} to pack",
            hint="build it with `make dist`, or name a built one with --base",
        )
    return path


def _is_private(data: bytes) -> bool:
    words = data.split()
    is_ours = len(words) == 1 and len(words[0]) == CLUSTER_KEY_DIGITS and _is_hexadecimal(words[0])
    return is_ours or any(sign in data for sign in PRIVATE_SIGNS)


def _is_hexadecimal(word: bytes) -> bool:
    return not word.strip(b"0123456789abcdefABCDEF")


def _read(path: str, what: str, bytes_max: int) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(bytes_max + 1)
    except OSError as error:
        raise UsageError(f"cannot read the {what} {path}: {error.strerror}") from None
    if not 0 < len(data) <= bytes_max:
        raise UsageError(f"the {what} {path} must have 1 to {bytes_max} bytes")
    return data


def _write(path: str, data: bytes, mode: int) -> None:
    """Whole or not at all: who runs the file of that name keeps it."""
    new = f"{path}.{os.getpid()}.new"
    try:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with open(fd, "wb") as file:
                file.write(data)
            os.rename(new, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(new)
            raise
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
