"""A session: a client's connection to a cluster, or to an executor of its own.

session.lease(...)    ask the resource manager (or an executor) for cores,
                      show the token to the node, send the library, start a worker
keeper thread         renews leases while the session lives; nothing else needs it
"""

from __future__ import annotations

import os
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal

from msgspec.structs import replace

from rfaas.addresses import is_local
from rfaas.client.lease import Lease
from rfaas.client.library import Library
from rfaas.config import Config, checked_argument, load
from rfaas.control import link as links
from rfaas.control.link import Link, Reply
from rfaas.errors import (
    ClosedError,
    LibraryError,
    PeerLostError,
    RfaasError,
    UnavailableError,
    UsageError,
)
from rfaas.launch import embedded
from rfaas.launch.local import PrivateExecutor
from rfaas.proto.messages import (
    FORMER_MAX,
    PROTOCOL_VERSION,
    AdoptLink,
    GetStatus,
    Hello,
    LeaseGranted,
    LeaseReport,
    Leases,
    ListLeases,
    ListNodes,
    Message,
    NodeReport,
    Nodes,
    RenewLease,
    RequestLease,
    StatusReport,
)
from rfaas.proto.proof import prove

RENEWALS_PER_LEASE = 3  # a lease is renewed when a third of its time has passed
ANSWER_S = 30.0  # to a request, beside the time that it waits for cores
PRIVATE_PEER = "the private executor"
RETRY_S = 0.5  # between two tries to renew while nobody answers


def connect(config: str | None = None, *, overrides: Mapping[str, object] | None = None) -> Session:
    """Connect to the configured cluster, or start a private executor.

    Args:
        config: path of a configuration file; None: where `rfaas.config.load` looks.
        overrides: configuration keys that win over all others, such as
            `{"client.executor": "none"}`.

    Without `client.resource_manager` and `client.executor` in the configuration, the
    resource manager at the default address is used if somebody answers there, and a
    private executor if nobody does.  `client.executor = "private"` asks for one.

    Raises:
        ConfigError: the configuration is wrong.
        UnavailableError: what is configured does not answer.
    """
    carried = embedded.read()
    return Session(load(config, overrides=overrides or {}, embedded=carried).config)


class Session:
    """See the module's docstring.  Thread-safe; `close` it, or use it in `with`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._hello = Hello(version=PROTOCOL_VERSION, role="client", name=config.client.name)
        self._lock = threading.Lock()
        self.former: dict[str, deque[tuple[str, bytes]]] = {}  # by node: leases and secrets
        self._leases: weakref.WeakSet[Lease] = weakref.WeakSet()
        self._private: PrivateExecutor | None = None
        self.progress: Callable[[str], None] | None = None  # told of what takes long: an image
        self._ahead: deque[links.Greeting] = deque()  # links for leases that are being asked for
        self._keeper: threading.Thread | None = None
        self._closed = threading.Event()
        self.link, self.where = self._connect()

    def _connect(self) -> tuple[Link, str]:
        """The link to whoever grants leases, and its address."""
        client = self.config.client
        if client.executor and client.executor != "private":
            try:
                return self._link_at(client.executor), client.executor
            except UnavailableError as error:
                raise UnavailableError(
                    f"no executor: {error.text}",
                    hint="start one with: rfaas serve --role executor --resource-manager none "
                    f"--address {client.executor}",
                ) from None
        if not client.executor:
            address = client.resource_manager or self.config.resource_manager.address
            try:
                return self._link_at(address), address
            except UnavailableError as error:
                if client.resource_manager or not is_local(address):
                    raise UnavailableError(
                        f"no resource manager: {error.text}",
                        hint="start one with: rfaas serve --role resource-manager",
                    ) from None
        self._private = PrivateExecutor(self.config)
        try:
            link = links.greet(self._private.link_socket, PRIVATE_PEER, self._hello)
            return link, "private"
        except BaseException:
            self._private.close()
            raise

    def _link_at(self, address: str) -> Link:
        return self._greet(address).link()

    def _greet(self, address: str) -> links.Greeting:
        hello, key, control = self._hello, b"", self.config.control
        if control.auth == "munge":
            from rfaas.control import munge

            hello = replace(hello, credential=munge.credential(control))
        elif control.auth == "key":
            from rfaas.control import cluster_key

            key = cluster_key.read(control)
        return links.dial(address, hello, self.config.rdma.device, key)

    def lease(  # noqa: PLR0913 - as many things can be asked for
        self,
        cores: int | Literal["all"] | None = None,
        library: str | os.PathLike[str] | bytes = "",
        *,
        memory: int | str | None = None,
        gpus: int | None = None,
        isolation: str | None = None,
        placement: Literal["pack", "spread", "node"] | None = None,
        wait_s: float | None = None,
        image: str | None = None,
        slots: int | None = None,
        slot_bytes: int | str | None = None,
        hot_timeout_ms: int | None = None,
        call_timeout_s: float | None = None,
        keep_warm: bool | None = None,
        shared: bool | None = None,
    ) -> Lease:
        """Lease cores and start a worker on them with `library`, on each node that has some.

        Args:
            cores: one lane each, "all" those of a node; None: `lease.cores` of the
                configuration, and so below.
            library: path of a shared object, or its bytes.
            memory: bytes that the workers may use together, text such as "2GiB", or "all"
                that a node has.
            gpus: for the workers alone; over several nodes they go by cores.
            isolation: the level that the worker is held by; "default": `sandbox`, or of a private
                executor that cannot hold it, since the functions are the caller's own, `process`.
            placement: "pack" on as few nodes as possible, "spread" evenly over many, "node"
                on one node or not at all.
            wait_s: how long to wait for cores in the queue; 0: not at all.
            image: what it runs in, at level "container": a name with its digest.
            slots: calls that a lane can hold at once.
            slot_bytes: the largest input, and output, of a call.
            hot_timeout_ms: milliseconds that a lane spins after a call before it
                sleeps; -1: for ever, 0: not at all.
            call_timeout_s: deadline of calls that name none; 0: none.
            keep_warm: whether the worker may be one that the node kept of a lease of ours
                before, with the state of its library, and be kept in turn.
            shared: whether its lanes may share processors with those of other leases that say
                so, on nodes that oversubscribe.  They never spin; calls that find their
                processor busy are asked for again, of other lanes first.

        Raises:
            LibraryError: no such library, or the node cannot load it.
            CapacityError: no node has that much, or not now.
            UsageError, WorldError: see `rfaas.errors`.
        """
        if self._closed.is_set():
            raise ClosedError("the session is closed")
        # Checked before anything is sent: a peer ends the link of who sends what cannot be.
        wanted = RequestLease(
            client=self.config.client.name,
            cores=self._asked("lease", "cores", cores),
            memory_bytes=self._asked("lease", "memory", memory),
            duration_s=self.config.client.lease_duration_s,
            isolation=self._isolation(isolation),
            placement=self._asked("lease", "placement", placement),
            wait_s=self._asked("lease", "wait_s", wait_s),
            image=self._asked("lease", "image", image),
            gpus=self._asked("lease", "gpus", gpus),
            shared=self._asked("lease", "shared", shared),
        )
        found = Library.read(library)
        options = {
            "slots": self._asked("lane", "slots", slots),
            "slot_bytes": self._asked("lane", "slot_bytes", slot_bytes),
            "hot_timeout_ms": self._asked("lane", "hot_timeout_ms", hot_timeout_ms),
            "spin_us": self.config.client.spin_us,
            "call_timeout_s": self._asked("client", "call_timeout_s", call_timeout_s),
            "keep_warm": self._asked("lease", "keep_warm", keep_warm),
        }
        if wanted.shared:
            if hot_timeout_ms:
                raise UsageError(
                    f"hot_timeout_ms={hot_timeout_ms} cannot be in a lease that shares processors: "
                    "its lanes never spin"
                )
            options["hot_timeout_ms"] = 0
        start = time.monotonic_ns()
        self._greet_ahead(wanted)
        try:
            granted = self._request(wanted)
        except BaseException:
            with suppress(IndexError):  # nobody needs it
                self._ahead.pop().close()
            raise
        lease = _kind(granted, wanted)(self, found, **options)
        lease.steps_ns["request"] = time.monotonic_ns() - start
        with self._lock:  # before it is open: loading may take longer than it lasts
            self._leases.add(lease)
            if self._keeper is None:
                self._keeper = threading.Thread(target=self._keep, name="rfaas-keeper", daemon=True)
                self._keeper.start()
        try:
            lease.open(granted)
        except BaseException as error:
            with self._lock:
                self._leases.discard(lease)
            lease.close()
            if isinstance(error, LibraryError):  # the node knows no name of it
                raise LibraryError(f"library {found.name}: {error.text}", hint=error.hint) from None
            raise
        return lease

    def _request(self, wanted: RequestLease) -> LeaseGranted:
        """Ask for a lease; one that may wait has a link of its own, not to keep others waiting."""
        if not wanted.wait_s:
            return self.ask(wanted, LeaseGranted)
        link = self.link_to(self.where)
        try:
            granted = link.ask(wanted, LeaseGranted, timeout_s=wanted.wait_s + ANSWER_S)
            return self.ask(  # it belongs to that link until it is renewed over ours
                lambda grants: RenewLease(
                    lease=granted.lease,
                    duration_s=wanted.duration_s,
                    proof=prove(granted.secret, grants.nonce, granted.lease),
                ),
                LeaseGranted,
            )
        finally:
            link.close()

    def _asked(self, section: str, key: str, value: object) -> Any:
        """An argument of `lease`, or the configuration's value where the caller gave none."""
        if value is None:
            return getattr(getattr(self.config, section), key)
        return checked_argument(key, f"{section}.{key}", value)

    def _isolation(self, asked: str | None) -> str:
        """The level to ask for: what is the default is said by a private executor, or known."""
        level: str = self._asked("lease", "isolation", asked)
        return "sandbox" if level == "default" and self._private is None else level

    def ask(self, message: Message | Callable[[Link], Message], kind: type[Reply]) -> Reply:
        """Ask whoever grants leases; one that was replaced meanwhile is found again.

        Args:
            message: the request, or what makes it for a link.

        Raises:
            PeerLostError, UnavailableError: nobody is there now.
            RfaasError: what it answered with.
        """
        link = self.link
        made = message if callable(message) else lambda _: message
        try:
            return link.ask(made(link), kind)
        except PeerLostError:
            if self._private is not None or self._closed.is_set():
                raise
        with self._lock:
            if self.link is link:  # else another thread was here before
                self.link = self._link_at(self.where)
                link.close()
        return self.link.ask(made(self.link), kind)

    def link_to(self, address: str) -> Link:
        """A new link to the executor of a lease."""
        with suppress(IndexError):
            return self._ahead.pop().link()
        if self._private is not None:
            return self._greet_private().link()
        # The one that granted it: as it was reached before.
        return self._link_at(self.where if self.config.client.executor else address)

    def _greet_ahead(self, wanted: RequestLease) -> None:
        """Where who grants a lease is its executor, it makes the lease's link meanwhile."""
        if wanted.wait_s:
            return
        if self._private is not None:
            self._ahead.append(self._greet_private())
        elif self.config.client.executor and is_local(self.where):
            self._ahead.append(self._greet(self.where))

    def _greet_private(self) -> links.Greeting:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:  # where it is not adopted, it is closed: that is answer enough
            greeting = links.Greeting(ours, PRIVATE_PEER, self._hello)
            fds = (theirs.fileno(),)
            try:
                if not self.link.post(AdoptLink(), fds):
                    self.link.request(AdoptLink(), fds)
            except BaseException:
                greeting.close()
                raise
        return greeting

    def nodes(self) -> list[NodeReport]:
        """The nodes of the cluster."""
        found: list[NodeReport] = []
        more = True
        while more:
            page = self.ask(ListNodes(after=found[-1].node if found else ""), Nodes)
            found += page.nodes
            more = page.more
        return found

    def leases(self, *, all: bool = False) -> list[LeaseReport]:  # noqa: A002
        """The live leases of the cluster; with `all`, those that ended lately, too."""
        found: list[LeaseReport] = []
        more = True
        while more:
            after = found[-1].lease if found else ""
            page = self.ask(ListLeases(after=after, all=all), Leases)
            found += page.leases
            more = page.more
        return found

    def status(self) -> StatusReport:
        """The state of whoever grants leases to this session."""
        return self.ask(GetStatus(), StatusReport)

    def close(self) -> None:
        """Release all leases, end a private executor.  Can be called twice."""
        if self._closed.is_set():
            return
        self._closed.set()
        for lease in self._kept():
            lease.close()
        if self._keeper is not None:
            self._keeper.join()
        while self._ahead:
            self._ahead.pop().close()
        self.link.close()
        if self._private is not None:
            self._private.close()

    def _keep(self) -> None:
        """Renew leases until the session is closed (in a thread of its own).

        It waits for no node, so no lease waits for another's.
        """
        usual_s = pause_s = self.config.client.lease_duration_s / RENEWALS_PER_LEASE
        while not self._closed.wait(pause_s):
            pause_s = usual_s
            for lease in self._kept():
                try:
                    lease.renew()
                except (PeerLostError, UnavailableError):
                    pause_s = min(usual_s, RETRY_S)
                except RfaasError:
                    continue  # the lease notices by itself when its time is up

    def had(self, node: str, lease: str, secret: bytes) -> None:
        """Remember a lease that was given back: its worker may have been kept for us."""
        with self._lock:
            self.former.setdefault(node, deque(maxlen=FORMER_MAX)).append((lease, secret))

    def had_on(self, node: str) -> tuple[tuple[str, bytes], ...]:
        """The leases on a node that were given back last, and their secrets."""
        with self._lock:
            return tuple(self.former.get(node, ()))

    def _kept(self) -> list[Lease]:
        with self._lock:
            return list(self._leases)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _kind(granted: LeaseGranted, wanted: RequestLease) -> type[Lease]:
    """Most leases are on one node and share nothing: they load no more than that."""
    if wanted.shared:
        from rfaas.client.sharing import SharedLease, SharedWideLease

        return SharedWideLease if granted.rest else SharedLease
    if granted.rest:
        from rfaas.client.wide import WideLease

        return WideLease
    return Lease
