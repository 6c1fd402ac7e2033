"""Who grants the leases that an executor serves: a resource manager, or itself.

Both answer the same questions: which keys sign the tokens of this node, who
answers a request for a lease, and who must hear that one is over.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, Protocol

from msgspec.structs import replace

from rfaas.addresses import announced
from rfaas.clock import Clock
from rfaas.config import ControlConfig
from rfaas.control import cluster_key, munge
from rfaas.control.aio import AsyncLink, connect, no_silent_end
from rfaas.core.lease import Ask, Lease
from rfaas.core.ledger import Ledger
from rfaas.core.placement import ALL
from rfaas.core.supervisor import Over
from rfaas.core.tokens import KEY_BYTES, Claims, sign, verify
from rfaas.errors import (
    NotPermittedError,
    PeerLostError,
    ProtocolError,
    RfaasError,
    UnavailableError,
    UsageError,
)
from rfaas.proto.messages import (
    LEASES_PER_JOIN_MAX,
    PROTOCOL_VERSION,
    Beat,
    Done,
    Error,
    Hello,
    JoinNode,
    LeaseEnded,
    LeaseGranted,
    LeaseTerminating,
    Message,
    NodeJoined,
    OpenLease,
    ReleaseLease,
    RenewLease,
    RequestLease,
    RevokeLease,
    Usage,
)
from rfaas.proto.proof import proves, secret_of

CLIENT_BEATS_MAX = 3  # that a client's machine may be silent, and a manager's
BEAT_S = 1.0  # of a node without a manager
USAGE_PER_BEAT_MAX = 256  # as messages.Beat
USAGE_S = 0.4  # the longest that usage waits to be told, so that bills are a second old at most
LEASE_DURATION_MAX_S = 86400.0
TURN_S = 0.1  # between two looks at who waits for cores of an executor that grants by itself
LOOPBACK = ("", "127.0.0.1", "::1")  # of no use to clients elsewhere
PAUSE_MIN_S, PAUSE_MAX_S = 0.1, 2.0  # before the manager is asked again; doubles
ENDS_MAX = 4096  # that a manager may not have; past that it learns of them by expiry
SAVED_S = 1.0  # in which a manager saves what it was told

log = logging.getLogger("rfaas.executor")


class Authority(Protocol):
    """See the module's docstring.

    Attributes:
        silence_s: of a client's machine, after which what it has here ends.
    """

    silence_s: float

    def claims(self, request: OpenLease, nonce: bytes) -> Claims:
        """What a token grants on this node, to whoever proves on the link with that nonce
        that the lease is its own.

        Raises:
            NotPermittedError: it is another client's.
            RfaasError: as of `core.tokens.verify`.
        """

    def owns(self, lease: str, proof: bytes, nonce: bytes) -> bool:
        """Whether who made the proof on that link has, or had, that lease of this node."""

    async def answer(self, request: Message, nonce: bytes) -> Message:
        """Answer RequestLease, RenewLease or ReleaseLease on the link with that nonce."""

    def over(self, over: Over) -> None:
        """A lease of this node is over."""

    async def close(self) -> None: ...


class OwnAuthority:
    """The executor grants its own cores: direct allocation, no resource manager."""

    silence_s = CLIENT_BEATS_MAX * BEAT_S

    def __init__(self, node: JoinNode, clock: Clock) -> None:
        self._node = node
        self._clock = clock
        self._key = secrets.token_bytes(KEY_BYTES)
        self._waiting: dict[str, asyncio.Future[Lease]] = {}  # by lease
        self._ledger = Ledger(float("inf"), 1, LEASE_DURATION_MAX_S)
        self._ledger.join(
            node.node,
            node.address,
            node.incarnation,
            node.cores,
            node.memory_bytes,
            node.isolation,
            (),
            clock.monotonic_s(),
            node.gpus,
            node.oversubscribe,
        )

    def claims(self, request: OpenLease, nonce: bytes) -> Claims:
        claims = verify(request.token, self._key, self._node.node, self._clock.wall_s())
        return _own(claims, self._key, request.proof, nonce)

    def owns(self, lease: str, proof: bytes, nonce: bytes) -> bool:
        return proves(proof, self._key, nonce, lease)

    async def answer(self, request: Message, nonce: bytes) -> Message:
        now = self._clock.monotonic_s()
        self._settle()
        match request:
            case RequestLease():
                wanted = ask_of(request, request.client, secrets.token_hex(16))
                lease = self._ledger.ask(wanted, now) or await self._turn(wanted)
                return self._granted(lease, request.id)
            case RenewLease():
                self._check_owner(request.lease, request.proof, nonce)
                return self._granted(
                    self._ledger.renew(request.lease, request.duration_s, now), request.id
                )
            case ReleaseLease():
                self._check_owner(request.lease, request.proof, nonce)
                self._ledger.end(request.lease, "released", now)
                self._settle()
                return Done(id=request.id)
        raise ProtocolError(f"an executor does not answer {type(request).__name__}")

    def over(self, over: Over) -> None:
        self._ledger.end(over.lease, over.cause, self._clock.monotonic_s(), over.usage)
        self._settle()

    def _granted(self, lease: Lease, request_id: int) -> LeaseGranted:
        return granted(lease, self._node.address, self._key, self._clock.wall_s(), request_id)

    def _check_owner(self, lease: str, proof: bytes, nonce: bytes) -> None:
        check_owner(lease, self._key, proof, nonce)

    async def _turn(self, wanted: Ask) -> Lease:
        """Wait in the queue."""
        future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._waiting[wanted.lease] = future
        try:
            while not future.done():
                await asyncio.wait([future], timeout=TURN_S)
                self._settle()
            return await future
        except asyncio.CancelledError:  # its client has gone
            if self._waiting.pop(wanted.lease, None) is not None:
                self._ledger.cancel(wanted.lease)
            else:  # granted in the same turn of the loop, and nobody hears of it
                self._ledger.end(wanted.lease, "client-lost", self._clock.monotonic_s())
            raise

    def _settle(self) -> None:
        now = self._clock.monotonic_s()
        self._ledger.tick(now)
        for settled in self._ledger.settle(now):
            future = self._waiting.pop(settled.ask.lease)
            if settled.granted is not None:
                future.set_result(settled.granted)
            elif settled.error is not None:
                future.set_exception(settled.error)

    async def close(self) -> None:
        pass


class Told(NamedTuple):
    """Who hears what a resource manager does to a node.

    `revoke` is called with (lease, cause) for a lease that must end, `terminate` for one that
    will end soon, `joined` the first time that the manager has taken the node in, `lost` with
    why if the link cannot be kept up any more, by a fault of ours.
    """

    revoke: Callable[[str, str], None]
    terminate: Callable[[LeaseTerminating], None]
    joined: Callable[[], None]
    lost: Callable[[str], None]


class ManagerAuthority:
    """A resource manager grants; its link is taken up again whenever it is lost.

    While it is away, leases that were granted are served on.

    Attributes:
        crashes: how many workers died of themselves so far, by cause; its owner counts.

    Args:
        usage: what each lease here has used so far.
        device: over RDMA, the one to connect from; "": the one that the route leads over.
        control: how the manager finds out whose node this is.
    """

    def __init__(
        self,
        address: str,
        node: JoinNode,
        clock: Clock,
        usage: Callable[[], dict[str, Usage]],
        told: Told,
        device: str = "",
        control: ControlConfig = ControlConfig(),  # noqa: B008 - frozen
    ) -> None:
        self._address = address
        self._device = device
        self._control = control
        self._node = node
        self._clock = clock
        self._usage = usage
        self._told = told
        self.crashes: dict[str, int] = {}
        self.silence_s = CLIENT_BEATS_MAX * BEAT_S  # until the manager has said its own
        self._keys: tuple[bytes, ...] = ()  # of this join and the one before
        self._link: AsyncLink | None = None
        # What a manager that is cut off, or killed before it has saved, may not have; and when.
        self._ends: deque[tuple[float, LeaseEnded]] = deque(maxlen=ENDS_MAX)
        self._task = asyncio.get_running_loop().create_task(self._keep_joined())

    def claims(self, request: OpenLease, nonce: bytes) -> Claims:
        if not self._keys:
            raise UnavailableError(
                f"node {self._node.node} has not joined a resource manager yet",
                hint=f"is one running at {self._address}?",
            )
        node, wall_s = self._node.node, self._clock.wall_s()
        for key in self._keys[1:]:
            with suppress(ProtocolError):
                return _own(verify(request.token, key, node, wall_s), key, request.proof, nonce)
        key = self._keys[0]
        return _own(verify(request.token, key, node, wall_s), key, request.proof, nonce)

    def owns(self, lease: str, proof: bytes, nonce: bytes) -> bool:
        return any(proves(proof, key, nonce, lease) for key in self._keys)

    async def answer(self, request: Message, nonce: bytes) -> Message:
        raise UsageError(
            f"node {self._node.node} grants no leases by itself",
            hint=f"ask the resource manager at {self._address}",
        )

    def over(self, over: Over) -> None:
        ended = LeaseEnded(lease=over.lease, cause=over.cause, usage=over.usage)
        self._ends.append((self._clock.monotonic_s(), ended))
        if self._link is not None:
            with suppress(PeerLostError):
                self._link.send(ended)

    async def close(self) -> None:
        if self._link is not None:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._link.drain(), 1.0)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_joined(self) -> None:
        with no_silent_end("the link to the resource manager", self._told.lost):
            await self._join_again()

    async def _join_again(self) -> None:
        pause_s, said = PAUSE_MIN_S, ""
        while True:
            try:
                hello = Hello(
                    version=PROTOCOL_VERSION,
                    role="executor",
                    name=self._node.node,
                    credential=munge.credential(self._control),
                )
                shared = cluster_key.read(self._control)
                link = await connect(self._address, hello, self._device, shared)
                try:
                    await self._serve(link)
                finally:
                    self._part()
                    await link.close()
                log.warning("lost the resource manager at %s; leases go on", self._address)
                pause_s, said = PAUSE_MIN_S, ""
            except (RfaasError, OSError) as error:
                if str(error) != said:  # each reason once, not at each try
                    said = str(error)
                    log.warning("%s; trying again", said)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # a thousand nodes not at once
            pause_s = min(2 * pause_s, PAUSE_MAX_S)

    def _part(self) -> None:
        """The link is lost: what was told long enough before has arrived, and is saved."""
        self._link = None
        doubtful_s = self._clock.monotonic_s() - self.silence_s - SAVED_S
        while self._ends and self._ends[0][0] < doubtful_s:
            self._ends.popleft()

    async def _serve(self, link: AsyncLink) -> None:
        live = tuple(self._usage())[:LEASES_PER_JOIN_MAX]
        host = link.local_host  # clients come to us as we come to the manager
        if host in LOOPBACK:
            host = os.uname().nodename
        address = announced(self._node.address, host)
        reply = await link.request(replace(self._node, address=address, leases=live))
        if not isinstance(reply, NodeJoined):
            raise ProtocolError(f"the manager answered {type(reply).__name__} to JoinNode")
        self.silence_s = CLIENT_BEATS_MAX * reply.heartbeat_s
        link.lose_after(self.silence_s)
        first = not self._keys
        self._keys = (reply.key, *self._keys[:1])
        self._link = link
        for _, ended in self._ends:  # once more, if it was told already: it ends once all the same
            link.send(ended)
        for lease in reply.revoked:
            self._told.revoke(lease, "revoked")
        log.info("node %s joined the %s at %s", self._node.node, link.peer, self._address)
        if first:
            self._told.joined()
        beats = asyncio.get_running_loop().create_task(self._beat(link, reply.heartbeat_s))
        try:
            while (message := await link.receive()) is not None:
                match message:
                    case LeaseTerminating():
                        self._told.terminate(message)
                    case RevokeLease():
                        self._told.revoke(message.lease, message.cause)
                    case Error():
                        raise ProtocolError(f"the manager refused a beat: {message.text}")
        finally:
            beats.cancel()

    async def _beat(self, link: AsyncLink, heartbeat_s: float) -> None:
        beat_s = silent_s = min(heartbeat_s, USAGE_S)
        while True:
            await asyncio.sleep(beat_s)
            usage = list(self._usage().items())
            if not usage and silent_s + beat_s / 2 < heartbeat_s:  # nothing to bill, nothing due
                silent_s += beat_s
                continue
            silent_s = beat_s
            try:
                for start in range(0, len(usage) or 1, USAGE_PER_BEAT_MAX):
                    part = dict(usage[start : start + USAGE_PER_BEAT_MAX])
                    link.send(
                        Beat(id=1, node=self._node.node, usage=part, crashes=dict(self.crashes))
                    )
            except PeerLostError:
                return


def granted(grant: Lease, address: str, key: bytes, wall_s: float, request_id: int) -> LeaseGranted:
    """The answer to a client, with the token that shows `grant` to its node."""
    claims = Claims(
        lease=grant.lease,
        client=grant.client,
        node=grant.node,
        cores=grant.cores,
        memory_bytes=grant.memory_bytes,
        isolation=grant.isolation,
        image=grant.image,
        gpus=grant.gpus,
        shared=grant.shared,
        duration_s=grant.duration_s,
        issued_at_s=wall_s,
        not_after_s=wall_s + grant.duration_s,
        fence=grant.fence,
    )
    return LeaseGranted(
        id=request_id,
        lease=grant.lease,
        node=grant.node,
        address=address,
        cores=grant.cores,
        memory_bytes=grant.memory_bytes,
        isolation=grant.isolation,
        duration_s=grant.duration_s,
        token=sign(claims, key),
        secret=secret_of(grant.lease, key),
        gpus=grant.gpus,
    )


def ask_of(request: RequestLease, account: str, lease: str) -> Ask:
    """What a client asks the ledger for, with the random id that the lease will have.

    Raises:
        UsageError: no memory at all, which the ledger would take for all of it.
    """
    if request.memory_bytes == 0:
        raise UsageError("0 bytes of memory cannot be leased", hint='"all" is all of a node')
    return Ask(
        lease=lease,
        client=request.client,
        account=account,
        cores=ALL if request.cores == "all" else request.cores,
        memory_bytes=ALL if request.memory_bytes == "all" else request.memory_bytes,
        duration_s=request.duration_s,
        isolation=request.isolation,
        image=request.image,
        gpus=request.gpus,
        placement=request.placement,
        wait_s=request.wait_s,
        shared=request.shared,
    )


def check_owner(lease: str, key: bytes, proof: bytes, nonce: bytes) -> None:
    """NotPermittedError unless the proof is that of the client of that lease, for this link."""
    if not proves(proof, key, nonce, lease):
        raise NotPermittedError(
            f"lease {lease[:8]} is another client's",
            hint="a token is good only with the secret that was granted with it",
        )


def _own(claims: Claims, key: bytes, proof: bytes, nonce: bytes) -> Claims:
    check_owner(claims.lease, key, proof, nonce)
    return claims
