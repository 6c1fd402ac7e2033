"""A lease over several nodes: one pool of lanes, a part for each node.

The parts were granted together and end together.  Each is a lease with a link and a worker
of its own; here they are put together, so that calls find the freest lane of all nodes.  A
part whose worker died gets another one while the others go on.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rfaas.client.lease import Lease
from rfaas.client.library import Library
from rfaas.errors import ProtocolError, RfaasError
from rfaas.native._window import Lane
from rfaas.proto.messages import LeaseGranted, LeasePart

if TYPE_CHECKING:
    from rfaas.client.session import Session


class WideLease(Lease):
    """See the module's docstring; made by `Session.lease`.

    `id` is that of the first part, `node` names all nodes.
    """

    def __init__(self, session: Session, library: Library, **options: Any) -> None:
        super().__init__(session, library, **options)
        self._options = options
        self._parts: list[Lease] = []
        self._owners: dict[Lane, Lease] = {}

    def open(self, granted: LeaseGranted | LeasePart) -> None:
        """Show each part's token to its node and start a worker there, all at once."""
        self.know(granted)
        grants = _parts(granted)
        self.node = ", ".join(one.node for one in grants)
        parts = [Lease(self._session, self._library, **self._options) for _ in grants]
        for part, one in zip(parts, grants, strict=True):
            part.know(one)  # also one that is never opened is given back
        self._parts = parts
        failed: list[BaseException] = []

        def start(part: Lease, one: LeaseGranted | LeasePart) -> None:
            try:
                part.open(one)
            except BaseException as error:  # noqa: BLE001 - raised below, in the caller's thread
                failed.append(error)

        threads = [
            threading.Thread(target=start, args=pair, name="rfaas-open")
            for pair in zip(parts, grants, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]
        if len({part.functions for part in parts}) > 1:
            raise ProtocolError(f"nodes {self.node} tell different tables of functions")
        self.lacks = tuple(dict.fromkeys(lack for part in parts for lack in part.lacks))
        self.transport = parts[0].transport
        self.endpoint = parts[0].endpoint
        self.cpus = tuple(cpu for part in parts for cpu in part.cpus)
        self.gpus = tuple(gpu for part in parts for gpu in part.gpus)
        self.steps_ns |= parts[0].steps_ns
        self._gather()

    @property
    def ends_in_s(self) -> float | None:
        times = [left for part in self._parts if (left := part.ends_in_s) is not None]
        return min(times, default=None)

    def renew(self) -> None:
        if not self._parts or self._ended is not None:
            return
        by_id = {one.lease: one for one in _parts(self._parts[0].ask_renewed())}
        for part in self._parts:
            if part.id in by_id:
                part.show_again(by_id[part.id])

    def close(self) -> None:
        for part in self._parts:
            part.close()
        super().close()

    # Hooks of Lanes

    def _revive(self) -> None:
        for part in self._parts:
            if not part._lanes:
                part._revive()
        self._gather()
        if not self._lanes:
            super()._revive()  # it says why there is none

    def _check(self, lane: Lane) -> None:
        self._part(lane)._check(lane)
        self._gather()

    def _lost(self, lane: Lane) -> None:
        self._part(lane)._lost(lane)
        self._start_again(lane)

    def _broken(self, lane: Lane) -> None:
        self._part(lane)._broken(lane)
        self._start_again(lane)

    def _late(self, lane: Lane, name: str, timeout_s: float) -> RfaasError:
        error = self._part(lane)._late(lane, name, timeout_s)
        self._start_again(lane)
        return error

    # Private

    def _part(self, lane: Lane) -> Lease:
        return self._owners[lane]

    def _start_again(self, lane: Lane) -> None:
        """The worker of a lane is gone: have another one, or find that the lease is over."""
        part = self._part(lane)
        with suppress(RfaasError):  # the next call finds out
            part._revive()
        self._gather()

    def _gather(self) -> None:
        """Serve calls over what lanes there are now."""
        with self._lock:
            for part in self._parts:
                if part._ended is not None and self._ended is None:
                    self._ended = part._ended
                for lane in part._lanes:
                    self._owners[lane] = part
            if self._ended is not None:
                for part in self._parts:
                    part._end(self._ended)
            lanes = [lane for part in self._parts for lane in part._lanes]
            self._install(lanes, self._parts[0].functions)


def _parts(granted: LeaseGranted | LeasePart) -> list[LeaseGranted | LeasePart]:
    rest = granted.rest if isinstance(granted, LeaseGranted) else ()
    return [granted, *rest]
