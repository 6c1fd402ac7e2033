"""A library on its way in: part by part, as messages or by RDMA READ."""

from __future__ import annotations

import logging

from rfaas.control import lending
from rfaas.control.aio import AsyncLink
from rfaas.launch.libraries import Libraries, Upload
from rfaas.proto.messages import LendLibrary, LibraryStored, SendLibrary

log = logging.getLogger("rfaas.executor")


class Incoming:
    """The one library that a client is sending; to be closed with its link."""

    def __init__(self, libraries: Libraries) -> None:
        self._libraries = libraries
        self._upload: Upload | None = None

    def take(self, part: SendLibrary) -> LibraryStored:
        """The next part; the first of another library drops what came of the one before.

        Raises:
            ProtocolError: a part that does not follow, or bytes that are not what was announced.
            CapacityError: no room for it.
        """
        if self._upload is None or part.offset == 0:
            self.close()
            self._libraries.check(part.size_bytes)
            self._upload = Upload(part)
        upload = self._upload
        upload.take(part)
        if upload.received == upload.size_bytes:
            self._upload = None
            try:
                self._libraries.add(upload)
            finally:
                upload.close()
        return LibraryStored(received=upload.received)

    async def read(self, link: AsyncLink, part: LendLibrary) -> LibraryStored:
        """The same for a part that lies in the client's memory, over a link of RDMA."""
        self._libraries.check(part.size_bytes)
        data = await lending.fetched(link, part.address, part.key, part.part_bytes)
        stored = self.take(
            SendLibrary(
                lease=part.lease,
                sha256=part.sha256,
                size_bytes=part.size_bytes,
                offset=part.offset,
                data=data,
            )
        )
        if self._upload is None:
            lending.forget(link)
            log.debug("library %s: %d bytes read over RDMA", part.sha256[:12], part.size_bytes)
        return stored

    def close(self) -> None:
        """Drop what has come of a library that is not complete."""
        if self._upload is not None:
            self._upload.close()
            self._upload = None
