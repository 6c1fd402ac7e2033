"""A client's library: its bytes and the hash by which nodes know it."""

from __future__ import annotations

import hashlib
import os
import stat
from typing import NamedTuple

from rfaas.control.link import Link
from rfaas.errors import LibraryError, SystemCallError
from rfaas.proto.messages import (
    LIBRARY_BYTES_MAX,
    LIBRARY_LENT_BYTES_MAX,
    LIBRARY_PART_BYTES_MAX,
    LendLibrary,
    SendLibrary,
)


class Library(NamedTuple):
    """A shared object to be run on other nodes."""

    name: str
    image: bytes
    sha256: str

    @classmethod
    def read(cls, source: str | os.PathLike[str] | bytes) -> Library:
        """The library in a file, or in bytes.

        Raises:
            LibraryError: no such file, not readable, empty or too large.
        """
        if isinstance(source, bytes):
            name, image = "library", source
        else:
            name = os.fspath(source)
            image = _read(name)
        if not 0 < len(image) <= LIBRARY_BYTES_MAX:
            raise LibraryError(
                f"library {name} has {len(image)} bytes, 1 to {LIBRARY_BYTES_MAX} are allowed"
            )
        return cls(name, image, hashlib.sha256(image).hexdigest())

    def send(self, link: Link, lease: str) -> None:
        """Bring the bytes to the executor at the other end of `link`: over RDMA it reads them."""
        if link.carrier.lends and self._lend(link, lease):
            return
        for offset in range(0, len(self.image), LIBRARY_PART_BYTES_MAX):
            link.request(
                SendLibrary(
                    lease=lease,
                    sha256=self.sha256,
                    size_bytes=len(self.image),
                    offset=offset,
                    data=self.image[offset : offset + LIBRARY_PART_BYTES_MAX],
                )
            )

    def _lend(self, link: Link, lease: str) -> bool:
        """Have the executor read them; False: one of us cannot, for lack of lockable memory."""
        from rfaas.control import lending  # not for a start on one machine

        whole = memoryview(self.image)
        for offset in range(0, len(whole), LIBRARY_LENT_BYTES_MAX):
            part = whole[offset : offset + LIBRARY_LENT_BYTES_MAX]
            with lending.lent(link, part) as found:
                if found is None:
                    return False
                address, key = found
                try:
                    link.request(
                        LendLibrary(
                            lease=lease,
                            sha256=self.sha256,
                            size_bytes=len(whole),
                            offset=offset,
                            part_bytes=len(part),
                            address=address,
                            key=key,
                        )
                    )
                except SystemCallError:
                    return False
        return True


def _read(path: str) -> bytes:
    if not path:
        raise LibraryError("no library is named", hint="give the path of a shared object")
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            size = found.st_size if stat.S_ISREG(found.st_mode) else 0
            return file.read(min(size or LIBRARY_BYTES_MAX, LIBRARY_BYTES_MAX) + 1)
    except FileNotFoundError:
        raise LibraryError(
            f"no such library: {path}",
            hint="`make -C functions` builds functions/libfunctions.so"
            if os.path.basename(path) == "libfunctions.so"
            else "",
        ) from None
    except OSError as error:
        raise LibraryError(f"cannot read library {path}: {error.strerror}") from None
