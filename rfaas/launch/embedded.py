"""What the one file that this program is carries behind its code: a configuration, a key.

Both one-file forms, the zipapp and the binary, end in the same footer, so that
`rfaas pack` writes both and this module reads both.  Who reads the
configuration checks the footer, so that a copy that stopped halfway says so;
`verify` checks every byte.  In the zipapp the footer is the zip's comment:

    base    8   size of what `pack` keeps when it puts in another configuration
    config  24  offset, size and CRC-32 of the configuration; size 0: there is none
    key     24  the same of the key
    length  8   of the whole file, this footer included
    sha256  32  of all bytes before the footer
    format  4   of all that; a program refuses a newer one
    size    4   of this footer
    magic   8   the last bytes of the file, in every format

All integers are little-endian.
"""

from __future__ import annotations

import os
import sys

from rfaas.errors import ConfigError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO, TypeAlias

    Part: TypeAlias = tuple[int, int, int]

MAGIC = b"RFAASONE"
FORMAT = 1
FOOTER_BYTES = 112
CONFIG_BYTES_MAX = 1 << 20  # as rfaas/config_sources.py reads a file
KEY_BYTES_MAX = 1 << 16

NO_PART = (0, 0, 0)  # offset, size and CRC-32 of some bytes of the file; size 0: it has none
_COPY_HINT = "copy it again; `sha256sum` on both machines tells whether two copies are the same"


class DamagedError(UsageError):
    """The program's own file is not what was built."""

    code = "damaged"
    exit_status = 65  # EX_DATAERR


class Footer:
    """See the module's docstring.  A plain class: a named tuple takes 0.6 ms of each start."""

    __slots__ = ("base", "config", "key", "length", "sha256")

    def __init__(self, base: int, config: Part, key: Part, length: int, sha256: bytes) -> None:
        self.base = base
        self.config = config
        self.key = key
        self.length = length
        self.sha256 = sha256

    def encode(self) -> bytes:
        """The last bytes of the file."""
        numbers = (self.base, *self.config, *self.key, self.length)
        tail = FORMAT.to_bytes(4, "little") + FOOTER_BYTES.to_bytes(4, "little") + MAGIC
        return b"".join(number.to_bytes(8, "little") for number in numbers) + self.sha256 + tail


def one_file() -> str:
    """The path of the one file that this program runs from; "" where it runs from a tree."""
    # The zipapp's loader (packaging/boot/finder.py) says it; PyInstaller marks `sys`.
    path: str = getattr(globals().get("__loader__"), "one_file", "")
    return path or (os.path.abspath(sys.executable) if getattr(sys, "frozen", False) else "")


def read() -> tuple[str, bytes] | None:
    """The configuration that this program carries: "in NAME" and its TOML; None if it has none.

    Raises:
        ConfigError: it is of a newer format than this program.
        DamagedError: the file was cut off or altered.
    """
    path = one_file()
    return read_from(path) if path else None


def read_from(path: str) -> tuple[str, bytes] | None:
    """The same of any one-file program."""
    with _opened(path) as file:
        footer = footer_of(file, path)
        if footer.config == NO_PART:
            return None
        return f"in {os.path.basename(path)}", _bytes_of(file, footer.config, path)


def read_key() -> bytes | None:
    """The key that `rfaas pack --key-file` put into this program, if it did."""
    if not (path := one_file()):
        return None
    with _opened(path) as file:
        footer = footer_of(file, path)
        return _bytes_of(file, footer.key, path) if footer.key != NO_PART else None


def footer_of(file: BinaryIO, path: str) -> Footer:
    """The footer of an open one-file program; `path` is for messages.

    Raises:
        ConfigError, DamagedError: as `read`.
    """
    length = os.fstat(file.fileno()).st_size
    data = os.pread(file.fileno(), FOOTER_BYTES, max(0, length - FOOTER_BYTES))
    if data[-8:] != MAGIC:
        raise DamagedError(
            f"{path} is damaged: its end is missing, it has {length} bytes", hint=_COPY_HINT
        )
    if (found := int.from_bytes(data[-16:-12], "little")) > FORMAT:
        raise ConfigError(
            f"what {path} carries is of format {found}, this rfaas reads up to {FORMAT}",
            hint="pack it again with the `rfaas pack` of this version",
        )
    n = [int.from_bytes(data[at : at + 8], "little") for at in range(0, 64, 8)]
    footer = Footer(n[0], (n[1], n[2], n[3]), (n[4], n[5], n[6]), n[7], data[64:96])
    if footer.length != length:
        raise DamagedError(
            f"{path} is damaged: it has {length} bytes of {footer.length}", hint=_COPY_HINT
        )
    parts = ((footer.config, CONFIG_BYTES_MAX), (footer.key, KEY_BYTES_MAX))
    for (offset, size, _), size_max in parts:
        if size > size_max or offset + size > length:
            raise DamagedError(f"{path} is damaged: its footer is wrong", hint=_COPY_HINT)
    return footer


def verify(path: str) -> None:
    """Check every byte of a one-file program against its footer's SHA-256: tens of milliseconds.

    Raises:
        DamagedError: it is not what was written.
    """
    import hashlib

    with _opened(path) as file:
        footer = footer_of(file, path)
        digest, left = hashlib.sha256(), footer.length - FOOTER_BYTES
        while left and (data := file.read(min(left, 1 << 20))):
            digest.update(data)
            left -= len(data)
    if digest.digest() != footer.sha256:
        raise DamagedError(
            f"{path} is damaged: its SHA-256 is not the one it was written with", hint=_COPY_HINT
        )


def _bytes_of(file: BinaryIO, part: Part, path: str) -> bytes:
    from binascii import crc32

    offset, size, check = part
    data = os.pread(file.fileno(), size, offset)
    if len(data) != size or crc32(data) != check:
        raise DamagedError(
            f"{path} is damaged: the configuration in it was altered", hint=_COPY_HINT
        )
    return data


def _opened(path: str) -> BinaryIO:
    try:
        return open(path, "rb", buffering=0)
    except OSError as error:
        raise DamagedError(f"cannot read {path}: {error.strerror}") from None
