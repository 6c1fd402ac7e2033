"""A lease that shares its processors: calls that find theirs busy are asked for again.

A worker of such a lease turns a request away, before anything of it is run, while another
lease has the processor.  Then the next lane is asked, on whatever node it is, and when all
have been, again after a pause that grows.  That goes on until the call's deadline, or for
`client.busy_timeout_s` where it has none.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, Any, cast

from rfaas.client.lease import Lease
from rfaas.client.wide import WideLease
from rfaas.errors import BusyError, NotDoneError, RfaasError, UsageError

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from rfaas.client.library import Library
    from rfaas.client.session import Session
    from rfaas.native._calls import Call

PAUSE_MIN_S, PAUSE_MAX_S = 0.0001, 0.02  # between two rounds over all lanes; doubles
LEFT_MIN_S = 0.001  # for a try: a deadline of a call is above 0


class Patience:
    """How long one call goes on asking, and when it asks next."""

    def __init__(self, limit_s: float, busy_timeout_s: float) -> None:
        self._began_s = time.monotonic()
        self._deadline_s = self._began_s + limit_s if limit_s > 0 else None
        self._until_s = self._deadline_s or self._began_s + busy_timeout_s
        self._pause_s = PAUSE_MIN_S
        self.tries = 0
        self.next_s = 0.0

    def left_s(self) -> float | None:
        """Until the call's deadline, None where it has none."""
        if self._deadline_s is None:
            return None
        return max(LEFT_MIN_S, self._deadline_s - time.monotonic())

    def turned_away(self, name: str, lease: SharedLease, busy: BusyError) -> None:
        """Find out when to ask again.

        Raises:
            BusyError: not at all.
        """
        self.tries += 1
        lanes = max(1, len(lease._lanes))
        lease._defer(getattr(busy, "lane", None))
        now_s = time.monotonic()
        if self.tries < lanes or now_s < self._until_s:
            self.next_s = now_s
            if self.tries % lanes == 0:
                self.next_s += self._pause_s * random.uniform(0.5, 1.0)
                self._pause_s = min(2 * self._pause_s, PAUSE_MAX_S)
            return
        raise BusyError(
            f"a call of {name} found no free processor in {now_s - self._began_s:.3g} s: "
            f"{self.tries} tries on node {lease.node}, whose other leases share its {lanes} "
            "lanes' processors",
            hint="try again later, raise timeout or client.busy_timeout_s, or lease without shared",
        )


class SharedLease(Lease):
    """See the module's docstring; made by `Session.lease`."""

    def __init__(self, session: Session, library: Library, **options: Any) -> None:
        super().__init__(session, library, **options)
        self._limit_s: float = options["call_timeout_s"]
        self._busy_timeout_s = session.config.client.busy_timeout_s

    def patience(self, timeout: float | None) -> Patience:
        """For a call with that deadline."""
        if timeout is not None and not timeout > 0:
            raise UsageError(f"timeout must be above 0 seconds, not {timeout}")
        return Patience(self._limit_s if timeout is None else timeout, self._busy_timeout_s)

    def call(self, name: str, data: Buffer = b"", *, timeout: float | None = None) -> memoryview:
        """As of `Lanes`; BusyError where no processor was free in time."""
        patience = self.patience(timeout)
        while True:
            try:
                return super().call(name, data, timeout=patience.left_s())
            except BusyError as busy:
                patience.turned_away(name, self, busy)
            if patience.tries == 1 and len(self._lanes) > 1:
                data = bytes(data)  # memory of `buffer` goes with its lane
            time.sleep(max(0.0, patience.next_s - time.monotonic()))

    def submit(  # type: ignore[override] # the same methods
        self, name: str, data: Buffer = b"", *, timeout: float | None = None
    ) -> SharedCall:
        """As of `Lanes`; a copy of the input is kept to ask again.

        A call that was turned away goes on when somebody waits for it, or asks whether it is
        done; a callback does.
        """
        return SharedCall(self, name, data, self.patience(timeout))

    def submit_once(self, name: str, data: Buffer, patience: Patience) -> Call:
        """One try."""
        return super().submit(name, data, timeout=patience.left_s())

    def map(self, name: str, inputs: Iterable[Buffer]) -> Generator[bytes]:
        """As of `Lanes`."""
        pending: deque[SharedCall] = deque()
        for data in inputs:
            room = sum(max(1, lane.slots - 1) for lane in self._lanes)
            if pending and len(pending) >= room:
                yield bytes(pending.popleft().result())
            pending.append(self.submit(name, data))
        while pending:
            yield bytes(pending.popleft().result())


class SharedWideLease(SharedLease, WideLease):
    """The same over several nodes."""


class SharedCall:
    """The future of a call on a lease that shares, with the methods of `Call`."""

    def __init__(self, lease: SharedLease, name: str, data: Buffer, patience: Patience) -> None:
        self.function = name
        self._lease = lease
        self._data = bytes(data)
        self._patience = patience
        self._lock = threading.Lock()
        self._call: Call | None = lease.submit_once(name, data, patience)  # None: in a pause
        self._done: Call | None = None
        self._error: RfaasError | None = None
        self._settled = False
        self._callbacks: list[Callable[[Any], object]] = []

    def done(self) -> bool:
        """Whether `result` would return, or raise, at once."""
        call = self._call
        if self._settled:
            return True
        if call is None:
            if time.monotonic() >= self._patience.next_s:
                self._again()
        elif call.done():
            self._look(call)
        return self._settled

    def running(self) -> bool:
        return not self.done()

    def cancel(self) -> bool:
        """False: a call cannot be taken back once it is in the worker's memory."""
        return False

    def cancelled(self) -> bool:
        return False

    def exception(self, timeout: float | None = None) -> RfaasError | None:
        """Wait as `result` does; the error that the call ended with, or None."""
        if timeout is not None and math.isnan(timeout):
            raise UsageError(f"timeout must be a number of seconds, not {timeout}")
        until_s = None if timeout is None else time.monotonic() + max(timeout, 0.0)
        while not self.done():
            call, now_s = self._call, time.monotonic()
            left_s = None if until_s is None else max(0.0, until_s - now_s)
            if call is not None:
                call.exception(left_s)
                continue
            pause_s = max(0.0, self._patience.next_s - now_s)
            if left_s is not None and left_s <= pause_s:
                time.sleep(left_s)
                raise NotDoneError(f"no result of {self.function} yet; the call goes on")
            time.sleep(pause_s)
        return self._error

    def result(self, timeout: float | None = None) -> memoryview:
        """The memoryview of the result, as `Lanes.call` returns it.

        Raises:
            NotDoneError: none came within `timeout` seconds; the call goes on.
            RfaasError: what `Lanes.call` raises.
        """
        error = self.exception(timeout)
        if error is not None:
            raise error
        assert self._done is not None
        return self._done.result()

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        """Call `callback(self)` once it is done: at once, or from a thread that waits for it."""
        with self._lock:
            waits = not self._settled
            if waits:
                self._callbacks.append(callback)
        if not waits:
            self._lease._call_back(callback, cast("Call", self))
        elif len(self._callbacks) == 1:
            self._lease._watch(cast("Call", self))

    def _rest(self, seconds: float) -> None:
        """Sleep until it is settled, for at most `seconds`: for who watches many calls."""
        try:
            self.exception(seconds)
        except NotDoneError:
            pass

    def _look(self, call: Call) -> None:
        """A try is over: was it turned away?"""
        with self._lock:
            if self._settled or call is not self._call:
                return
            error = call.exception()
            if isinstance(error, BusyError):
                try:
                    self._patience.turned_away(self.function, self._lease, error)
                except BusyError as last:
                    error = last
                else:
                    self._call = None
                    return
            self._settle(call, error)
        self._tell()

    def _again(self) -> None:
        """Ask again, unless another thread does."""
        if not self._lock.acquire(blocking=False):
            time.sleep(0)  # it may need the lock of Python
            return
        try:
            if self._settled or self._call is not None:
                return
            try:
                self._call = self._lease.submit_once(self.function, self._data, self._patience)
                return
            except RfaasError as error:  # the lease is over
                self._settle(None, error)
        finally:
            self._lock.release()
        self._tell()

    def _settle(self, call: Call | None, error: RfaasError | None) -> None:
        self._done, self._error, self._data = call, error, b""
        self._settled = True

    def _tell(self) -> None:
        with self._lock:
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            self._lease._call_back(callback, cast("Call", self))
