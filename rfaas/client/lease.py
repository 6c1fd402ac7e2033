"""A lease: cores of one node that run a library's functions.

The calls are in `native/_calls.pyx`; here is what surrounds them: the link to
the node's executor, starting a worker (again, after one died), deadlines,
renewal, and finding out why nothing comes back any more.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

from rfaas import transport
from rfaas.client.library import Library
from rfaas.control.link import Link
from rfaas.errors import (
    ClosedError,
    DeadlineExceededError,
    LeaseEndedError,
    LibraryMissingError,
    PeerLostError,
    ProtocolError,
    RfaasError,
    UnavailableError,
    WorkerCrashedError,
    WorldError,
)
from rfaas.native._calls import Call, Lanes
from rfaas.native._window import Lane
from rfaas.proto import wire
from rfaas.proto.messages import (
    Done,
    Endpoint,
    FormerLease,
    Functions,
    ImageProgress,
    LeaseEnded,
    LeaseGranted,
    LeasePart,
    LeaseTerminating,
    ListFunctions,
    Message,
    OpenLease,
    ReleaseLease,
    RenewLease,
    StartWorker,
    StopWorker,
    WorkerExited,
    WorkerStarted,
    WorkerStopped,
)
from rfaas.proto.proof import prove

if TYPE_CHECKING:
    from rfaas.client.session import Session

START_TIMEOUT_S = 3660.0  # above executor.load_timeout_s, which is the one that counts
WATCH_SLICE_S = 0.01  # of waiting for one of the calls with callbacks, before a look at the others
NOTICE_TIMEOUT_S = 2.0  # between a ring that ended and the notice that says why


class Lease(Lanes):
    """See the module's docstring; made by `Session.lease`, calls as of `Lanes`.

    A function that crashes its worker fails the calls that were in flight there; the
    next call starts a new worker.  Usable from several threads.
    """

    def __init__(
        self,
        session: Session,
        library: Library,
        *,
        slots: int,
        slot_bytes: int,
        hot_timeout_ms: int,
        spin_us: int,
        call_timeout_s: float,
        keep_warm: bool,
    ) -> None:
        super().__init__(spin_us, call_timeout_s)
        self.id = ""
        self.node = ""
        self.isolation = ""
        self.lacks: tuple[str, ...] = ()  # parts of that level which the node has not
        self.output = b""  # the end of what the worker that ended last had written
        self.transport = ""
        self.endpoint: Endpoint | None = None  # where the worker listens, over verbs
        self.cpus: tuple[int, ...] = ()
        self.gpus: tuple[str, ...] = ()  # which of the node's
        self.was_kept = False  # whether the worker is that of a former lease, with its state
        self.steps_ns: dict[str, int] = {}
        self._ends_at_s: float | None = None  # once notice was given
        self._secret = b""  # proves that the lease is ours; see proto/proof.py
        self._session = session
        self._library = library
        self._slots = slots
        self._slot_bytes = wire.slot_bytes_for(slot_bytes)
        self._hot_timeout_ms = hot_timeout_ms
        self._keep_warm = keep_warm
        self._link: Link | None = None
        self._worker = 0  # its number
        self._unsure = False  # whether a worker may be there of which we have not heard
        self._ended: RfaasError | None = None
        self._watched: list[Call] = []
        self._watcher: threading.Thread | None = None
        self._lock = threading.RLock()

    def know(self, granted: LeaseGranted | LeasePart) -> None:
        """Take note of a grant: from here on `close` gives it back."""
        self.id = granted.lease
        self.node = granted.node
        self.isolation = granted.isolation
        self._secret = granted.secret

    def open(self, granted: LeaseGranted | LeasePart) -> None:
        """Show the token to the node and start a worker there."""
        self.know(granted)
        start = time.monotonic_ns()
        self._link = self._session.link_to(granted.address)
        self._link.heard = self._heard
        self.steps_ns["connect"] = time.monotonic_ns() - start
        self._start_worker(self._shown(self._link, granted))

    def renew(self) -> None:
        """Extend the lease by its duration from now on; the session does it by itself.

        Waits for who grants leases and not for the node, where a worker may be loading
        meanwhile: it says by itself when the lease is over.

        Raises:
            LeaseEndedError: it is over.
            PeerLostError: the resource manager or the node is gone.
            UnavailableError: the resource manager is away, or the node does not read.
        """
        if self._link is None or self._ended is not None:
            return
        self.show_again(self.ask_renewed())

    def ask_renewed(self) -> LeaseGranted:
        """Ask who grants leases for more time; of a lease over several nodes, for all parts."""
        duration_s = self._session.config.client.lease_duration_s
        return self._session.ask(
            lambda grants: RenewLease(
                lease=self.id,
                duration_s=duration_s,
                proof=prove(self._secret, grants.nonce, self.id),
            ),
            LeaseGranted,
        )

    def show_again(self, granted: LeaseGranted | LeasePart) -> None:
        """Tell the node of a renewal, without waiting for it."""
        link = self._link
        if link is not None and not link.post(self._shown(link, granted)):
            raise UnavailableError(f"node {self.node} does not read")

    @property
    def ends_in_s(self) -> float | None:
        """Seconds until the lease ends whatever we do, if notice was given; else None."""
        self._listen(0.0)
        if self._ends_at_s is None:
            return None
        return max(0.0, self._ends_at_s - time.monotonic())

    def _shown(self, link: Link, granted: LeaseGranted | LeasePart) -> OpenLease:
        proof = prove(self._secret, link.nonce, self.id)
        return OpenLease(token=granted.token, proof=proof)

    def close(self) -> None:
        """Release the lease; returns when its worker is gone.  Can be called twice.

        Calls in flight fail; results that were returned stay valid.
        """
        with self._lock:
            link, self._link = self._link, None
            over, self._ended = self._ended, self._ended or ClosedError("the lease was released")
            self._fail(self._ended)
        watcher = self._watcher
        if watcher is not None and watcher is not threading.current_thread():
            watcher.join()
        if link is not None:
            try:
                link.request(ReleaseLease(lease=self.id))
                if self._keep_warm:
                    self._session.had(self.node, self.id, self._secret)
            except RfaasError:
                pass  # the node ends the lease with the link, at the latest
            link.close()
        if self.id and not isinstance(over, PeerLostError):
            try:
                self._session.ask(
                    lambda grants: ReleaseLease(
                        lease=self.id, proof=prove(self._secret, grants.nonce, self.id)
                    ),
                    Done,
                )
            except RfaasError:
                pass  # so does the resource manager

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "over" if self._ended else "live"
        return f"<rfaas.Lease {self.id[:8]} on {self.node}, {len(self._lanes)} lanes, {state}>"

    # Starting a worker

    def _start_worker(self, opens: OpenLease | None = None) -> None:
        link = self._live_link()
        wanted = self._transport_over(link)
        if self._unsure:
            self._stop_worker("its client was interrupted", 0)
        request = StartWorker(
            lease=self.id,
            sha256=self._library.sha256,
            slots=self._slots,
            slot_bytes=self._slot_bytes,
            hot_timeout_ms=self._hot_timeout_ms,
            transport=wanted,
            keep_warm=self._keep_warm,
            former=self._former(link),
            opens=opens,
        )
        start = asked_at = time.monotonic_ns()
        kept = ("request", "connect")  # of an earlier start, no other step
        self.steps_ns = {step: ns for step, ns in self.steps_ns.items() if step in kept}
        self._unsure = True
        try:
            try:
                started = link.ask(request, WorkerStarted, timeout_s=START_TIMEOUT_S)
            except LibraryMissingError:
                self._library.send(link, self.id)
                asked_at = time.monotonic_ns()
                self.steps_ns["send_library"] = asked_at - start
                started = link.ask(request, WorkerStarted, timeout_s=START_TIMEOUT_S)
            started_at = time.monotonic_ns()
            carrier = transport.transport(started.transport)
            fds = link.take_fds()
            try:
                lanes = carrier.accept(
                    started.lanes,
                    started.slots,
                    started.slot_bytes,
                    fds,
                    started.endpoint,
                    self._session.config.rdma.device,
                )
            finally:
                _close(fds)
            names = self._table(link, started)
        except BaseException as error:  # Ctrl-C too: what was begun must not be in the next's way
            if isinstance(error, WorkerCrashedError):
                error.lease = self.id
            with suppress(RfaasError):
                self._stop_worker("its start was broken off", 0)
            raise
        self._worker = started.worker
        self.transport = carrier.name
        self.endpoint = started.endpoint
        self.isolation, self.lacks = started.isolation, started.lacks
        self.cpus = started.cpus
        self.gpus = started.gpus
        self.was_kept = started.kept
        self._install(lanes, names)
        self._unsure = False
        self.steps_ns["start_worker"] = started_at - start
        self.steps_ns["open_lanes"] = time.monotonic_ns() - started_at
        self.steps_ns.update(started.steps_ns)
        self.steps_ns["link"] = started_at - asked_at - sum(started.steps_ns.values())

    def _former(self, link: Link) -> tuple[FormerLease, ...]:
        """What shows that workers which this node may have kept were ours."""
        had = self._session.had_on(self.node) if self._keep_warm else ()
        return tuple(
            FormerLease(lease=lease, proof=prove(secret, link.nonce, lease))
            for lease, secret in had
        )

    def _transport_over(self, link: Link) -> str:
        """What is to carry calls; in vain where this machine cannot, so that is said first."""
        config = self._session.config
        wanted = transport.fitting(config.lane.transport, link.passes_fds)
        if not link.passes_fds:
            try:
                transport.transport(wanted).host(config.rdma.device)
            except WorldError as error:
                raise type(error)(
                    f"calls to {link.peer}, reached over a network, need RDMA: {error.text}",
                    hint=error.hint,
                ) from None
        return wanted

    def _table(self, link: Link, started: WorkerStarted) -> list[str]:
        names, more = list(started.functions), started.more
        while more:
            page = link.ask(ListFunctions(lease=self.id, start=len(names)), Functions)
            if not page.functions:
                raise ProtocolError(f"{link.peer} does not tell its table of functions")
            names += page.functions
            more = page.more
        return names

    def _live_link(self) -> Link:
        if self._ended is not None:
            raise type(self._ended)(self._ended.text, hint=self._ended.hint)
        if self._link is None:
            raise ClosedError("the lease was never opened")
        return self._link

    # Hooks of Lanes

    def _revive(self) -> None:
        """A call finds no lane: start a worker, unless the lease is over."""
        with self._lock:
            if not self._lanes:
                self._start_worker()

    def _check(self, lane: Lane) -> None:
        """A call takes long: has the executor said anything, is it there at all?"""
        self._listen(0.0)

    def _lost(self, lane: Lane) -> None:
        """The lane has ended: find out why."""
        deadline = time.monotonic() + NOTICE_TIMEOUT_S
        while lane.failure is None and time.monotonic() < deadline:
            self._listen(NOTICE_TIMEOUT_S)
        if lane.failure is None:
            error = lane.explain(lane) if lane.explain is not None else None
            if error is None:
                error = WorkerCrashedError("the worker is gone and its executor does not say why")
            with self._lock:
                if lane in self._lanes:  # else its worker has been replaced meanwhile
                    self._fail(error)
                    with suppress(RfaasError):  # it may live, though nothing of it is reached
                        self._stop_worker(error.text, self._worker)
                lane.failure = self._ended or error

    def _broken(self, lane: Lane) -> None:
        """A lane cannot be believed any more: do without its worker."""
        with self._lock:
            if lane in self._lanes and lane.failure is not None:
                self._fail(lane.failure)
                self._stop_worker(lane.failure.text, self._worker)

    def _late(self, lane: Lane, name: str, timeout_s: float) -> RfaasError:
        """A call is past its deadline: it ends only with its worker."""
        text = f"a call of {name} did not return within {timeout_s:g} s"
        with self._lock:
            if lane in self._lanes:  # else its worker was ended meanwhile, and maybe replaced
                self._fail(WorkerCrashedError(f"the worker was stopped: {text}"))
                with suppress(RfaasError):
                    self._stop_worker(text, self._worker)
        return DeadlineExceededError(
            f"{text}; its worker was stopped",
            hint="the next call starts a new worker; raise timeout if the function needs longer",
        )

    def _stop_worker(self, reason: str, number: int) -> None:
        """End a worker, which may live although nothing of it can be reached."""
        link = self._live_link()
        self._unsure = True
        try:
            link.ask(StopWorker(lease=self.id, worker=number, reason=reason), WorkerStopped)
            _close(link.take_fds())  # of a start that nobody waited for
            self._unsure = False
        except PeerLostError as error:
            self._end(error)

    def _call_back(self, callback: Callable[[Call], object], call: Call) -> None:
        """As concurrent.futures does: what a callback raises is logged and forgotten."""
        try:
            callback(call)
        except Exception:
            import logging

            logging.getLogger("rfaas.client").exception("a callback of %s failed", call.function)

    def _watch(self, call: Call) -> None:
        """Have somebody wait for a call that has a callback."""
        with self._lock:
            self._watched.append(call)
            if self._watcher is None:
                self._watcher = threading.Thread(
                    target=self._wait_for_watched, name="rfaas-callbacks", daemon=True
                )
                self._watcher.start()

    def _wait_for_watched(self) -> None:
        done: set[Call] = set()
        while True:
            with self._lock:
                self._watched = [call for call in self._watched if call not in done]
                watched = tuple(self._watched)
                if not watched:
                    self._watcher = None
                    return
            done = {call for call in watched if call.done()}
            if not done:
                try:
                    watched[0]._rest(WATCH_SLICE_S)
                except RfaasError:
                    pass  # whoever waits for that call hears of it
                self._watched.append(self._watched.pop(0))

    # Links and ends

    def _heard(self, notice: Message) -> bool:
        """What is told while something else is waited for: how far the image is."""
        if not isinstance(notice, ImageProgress):
            return False
        if self._session.progress is not None:
            self._session.progress(notice.text)
        return True

    def _listen(self, wait_s: float) -> None:
        """Take in what the executor has said without being asked."""
        link = self._link
        if link is None:
            return
        lost: RfaasError | None = None
        try:
            link.poll(wait_s)
        except PeerLostError as error:
            lost = PeerLostError(f"the executor of node {self.node} is gone: {error.text}")
        except ProtocolError as error:
            lost = error
        while link.notices:  # also those before the end: they say why it came
            with self._lock:  # one thread at a time takes them, and none starts a worker meanwhile
                match link.notices.popleft() if link.notices else None:
                    case WorkerExited() as notice if notice.worker == self._worker:
                        self.output = notice.output
                        self._fail(
                            WorkerCrashedError(notice.text, lease=self.id, output=notice.output)
                        )
                    case LeaseTerminating() as notice if notice.lease == self.id:
                        self._ends_at_s = time.monotonic() + notice.remaining_s
                    case LeaseEnded() as notice if notice.lease == self.id:
                        self._end(LeaseEndedError(f"lease {self.id[:8]} is over: {notice.cause}"))
        if lost is not None:
            self._end(lost)

    def _end(self, error: RfaasError) -> None:
        """The lease is over: nothing can be called any more."""
        self._ended = self._ended or error
        self._fail(error)

    def _fail(self, error: RfaasError) -> None:
        """The worker is gone: fail what is in flight there."""
        for lane in self._lanes:
            lane.poll()
            lane.failure = lane.failure or error
        self._install([], self.functions)


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


__all__ = ["Call", "Lease"]
