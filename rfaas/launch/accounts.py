"""The executor's pages to which workers add over RDMA what they have counted.

One listener for the node's device, opened with its first worker over `verbs`,
and a page for each worker.  Where that cannot be had, because the device has no
atomics or no memory may be locked, the page that a worker shares with the
executor is all there is: same counts, but over RDMA they would also come from
another machine.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from rfaas.proto.messages import Endpoint
from rfaas.transport import verbs_errors

if TYPE_CHECKING:
    from rfaas.native._verbs import AccountPage, AccountPages

log = logging.getLogger("rfaas.executor")


class Account:
    """The page of one worker, and where that one connects to add to it."""

    def __init__(self, pages: AccountPages, page: AccountPage, host: str) -> None:
        self._pages = pages
        self._page = page
        self.place = Endpoint(host=host, port=pages.port, secret=page.secret)

    def read(self) -> bytes | None:
        """The lines as they were told last; None if the worker has told nothing yet."""
        return self._page.read() if self._page.is_told else None

    def close(self) -> None:
        """Disconnect and forget it."""
        self._pages.close_page(self._page)


class Accounts:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._pages: AccountPages | None = None
        self._host = ""  # of the listener, or where there can be none

    def open(self, host: str, lanes: int) -> Account | None:
        """A page for a worker whose device has the address `host`; None if it cannot be had."""
        native = verbs_errors.load()
        try:
            if host != self._host or (self._pages is not None and self._pages.is_lost):
                self.close()
                self._host = host
                pages = native.AccountPages(host)
                if not pages.has_atomics:
                    pages.close()
                    log.warning(
                        "the RDMA device of %s has no atomics: counts come by shared memory", host
                    )
                    return None
                self._pages = pages
                asyncio.get_running_loop().add_reader(pages.fileno(), pages.step)
            if self._pages is None:
                return None
            return Account(self._pages, self._pages.page(lanes), host)
        except native.Trouble as trouble:
            error = verbs_errors.of_trouble(trouble, "open an accounting page to RDMA")
            log.warning("%s; counts come by shared memory", error.text)
            return None

    def close(self) -> None:
        """Close the listener and all pages."""
        if self._pages is not None:
            asyncio.get_running_loop().remove_reader(self._pages.fileno())
            self._pages.close()
        self._pages, self._host = None, ""
