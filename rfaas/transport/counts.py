"""Telling an executor over RDMA what the lanes of this process have counted.

The lanes count on the accounting page that this process shares with its
executor.  Twice a second, and once more at an orderly end, what has grown is
added to the executor's own memory by FETCH_AND_ADD (`native/verbs_account.h`).
It connects when it first has something to tell: a start does not wait for it.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from rfaas.transport import verbs_errors

if TYPE_CHECKING:
    from rfaas.native._verbs import Teller
    from rfaas.proto.messages import Endpoint

TELL_S = 0.5  # a sum is to be no older than a second
TIMEOUT_S = 0.4  # for one telling: what keeps the network is not to keep the lanes' events


class Counts:
    """See the module's docstring; `place` is where the executor listens, None: nowhere."""

    def __init__(self, place: Endpoint | None, account_fd: int, lanes: int) -> None:
        self.wait_ms = TELL_S * 1e3 if place is not None else None  # to poll(2) for, till `tell`
        self._place = place
        self._fd = os.dup(account_fd) if place is not None else -1
        self._lanes = lanes
        self._next_s = time.monotonic() + TELL_S
        self._teller: Teller | None = None

    def tell(self, *, last: bool = False) -> None:
        """Tell, if it is time or this is the `last` time; says on stderr, once, if it cannot."""
        if self._place is None or (not last and time.monotonic() < self._next_s):
            return
        self._next_s = time.monotonic() + TELL_S
        native = verbs_errors.load()
        place = self._place
        try:
            if self._teller is None:
                self._teller = native.Teller(
                    self._fd, self._lanes, place.host, place.port, place.secret, TIMEOUT_S
                )
            told = self._teller.tell(TIMEOUT_S)
            why = "" if told else "the connection for it is broken"
        except native.Trouble as trouble:
            where = f"tell its counts at {place.host} port {place.port}"
            why = verbs_errors.of_trouble(trouble, where).text
        if why:  # the executor settles by the page itself when this process has ended
            print(f"rfaas: counts are told no more: {why}", file=sys.stderr, flush=True)
            self.close()

    def close(self) -> None:
        """Disconnect."""
        if self._teller is not None:
            self._teller.close()
        if self._fd >= 0:
            os.close(self._fd)
        self._teller, self._fd, self._place, self.wait_ms = None, -1, None, None
