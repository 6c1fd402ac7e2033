"""The libraries that this node has, by content: sealed memory files, least used go first."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections import OrderedDict

from rfaas.errors import CapacityError, ProtocolError
from rfaas.proto.messages import SendLibrary
from rfaas.transport import ring


class Upload:
    """A library that arrives in parts over one link."""

    def __init__(self, first: SendLibrary) -> None:
        self.sha256 = first.sha256
        self.size_bytes = first.size_bytes
        self.received = 0
        self._hash = hashlib.sha256()
        self._fd = ring.sealed("rfaas-library", [], 0, final=False)

    def take(self, part: SendLibrary) -> None:
        """Append a part; ProtocolError if it does not follow the one before."""
        if (
            part.sha256 != self.sha256
            or part.size_bytes != self.size_bytes
            or part.offset != self.received
            or self.received + len(part.data) > self.size_bytes
            or not part.data
        ):
            raise ProtocolError(
                f"a part of a library at offset {part.offset} does not follow {self.received} "
                f"of {self.size_bytes} bytes"
            )
        os.pwrite(self._fd, part.data, self.received)
        self._hash.update(part.data)
        self.received += len(part.data)

    def finish(self) -> int:
        """The descriptor of the whole library, now the caller's.

        Raises:
            ProtocolError: the bytes are not those that were announced.
        """
        if self._hash.hexdigest() != self.sha256:
            raise ProtocolError(
                f"the library's {self.size_bytes} bytes do not match their SHA-256",
                hint="did the file change while it was sent?",
            )
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, ring.SEALS | fcntl.F_SEAL_WRITE)
        fd, self._fd = self._fd, -1
        return fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Libraries:
    """The cache; owns the descriptors it hands out."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._known: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def find(self, sha256: str) -> int | None:
        """The descriptor of a library, lent until the next `add`; None if it is unknown."""
        found = self._known.get(sha256)
        if found is None:
            return None
        self._known.move_to_end(sha256)
        return found[0]

    def check(self, size_bytes: int) -> None:
        """CapacityError if a library of that size could never be kept."""
        if size_bytes > self._bytes_max:
            raise CapacityError(
                f"a library of {size_bytes} bytes is too large for this node's cache "
                f"of {self._bytes_max}",
                hint="raise executor.library_cache_bytes_max there",
            )

    def add(self, upload: Upload) -> None:
        """Keep a library that has arrived."""
        fd = upload.finish()
        if upload.sha256 in self._known:
            os.close(fd)
            return
        while self._bytes + upload.size_bytes > self._bytes_max and self._known:
            _, (old, size) = self._known.popitem(last=False)
            os.close(old)
            self._bytes -= size
        self._known[upload.sha256] = (fd, upload.size_bytes)
        self._bytes += upload.size_bytes

    def close(self) -> None:
        for fd, _ in self._known.values():
            os.close(fd)
        self._known.clear()
        self._bytes = 0
