"""The control plane's messages: each a typed record.  No I/O.

Declared here and nowhere else.  A conversation is requests and replies matched
by `id`, and a few notices that nobody answers (`id` 0).  The first message on a
link is `Hello`; a peer that speaks another version is refused by an `Error`
that names both.  Replies are the message that stands under "answered by", or
`Error`.

    asks                    message           answered by
    client -> manager       RequestLease      LeaseGranted
    (or -> executor)        RenewLease        LeaseGranted
                            ReleaseLease      Done
                            ListNodes         Nodes
                            ListLeases        Leases
                            GetStatus         StatusReport
    client -> executor      OpenLease         LeaseOpened
                            SendLibrary...    LibraryStored (for each part)
                            LendLibrary...    LibraryStored (the same; over RDMA)
                            StartWorker       WorkerStarted (with what the transport offers)
                            StopWorker        WorkerStopped
    executor -> client      WorkerExited      (notice)
                            ImageProgress     (notice)
                            LeaseTerminating  (notice)
                            LeaseEnded        (notice)
    executor -> manager     JoinNode          NodeJoined
                            Beat              BeatTaken
                            LeaseEnded        (notice)
    manager -> executor     LeaseTerminating  (notice)
                            RevokeLease       (notice)
    client -> its private   AdoptLink         Done (with a socket's descriptor: one more link)
    executor

Those inside a node, of executor, zygote and workers, are in worker_messages.py.

Checklist for a new one: docs/architecture.md, "add a message".
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from rfaas import __version__
from rfaas.proto.wire import SECRET_BYTES

PROTOCOL_VERSION = 6
FRAME_BYTES_MAX = 64 * 1024
LIBRARY_PART_BYTES_MAX = 48 * 1024  # leaves room for the frame's other fields
LIBRARY_LENT_BYTES_MAX = 1024 * 1024  # of a part over RDMA, locked in memory at either end
FORMER_MAX = 16  # leases that a client shows it had
OUTPUT_BYTES_MAX = 32 * 1024  # of what a worker has written, in one message
LIBRARY_BYTES_MAX = 512 * 1024 * 1024
# 34 bytes each, beside names of 3 KiB: what a frame holds.  A manager that knows the node keeps
# those beyond; to one that does not they are unknown, and they end by their tokens' time.
LEASES_PER_JOIN_MAX = 1800

Name = Annotated[str, Meta(min_length=1, max_length=255)]
Address = Annotated[str, Meta(min_length=1, max_length=255)]
Program = Annotated[str, Meta(max_length=64)]  # rfaas.__version__
Text = Annotated[str, Meta(max_length=4096)]
LeaseId = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]  # 128 random bits
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Cores = Annotated[int, Meta(ge=1, le=65536)]
Gpus = Annotated[int, Meta(ge=0, le=4096)]
Bytes = Annotated[int, Meta(ge=0, le=2**60)]
Seconds = Annotated[float, Meta(ge=0, le=10 * 365 * 86400)]
ImageName = Annotated[str, Meta(max_length=512)]  # as of rfaas.core.image
Token = Annotated[bytes, Meta(max_length=4096)]
Proof = Annotated[bytes, Meta(max_length=32)]  # of `proto.proof.prove`, b"" for none


class Message(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all messages; `id` ties a reply to its request, 0 in a notice."""

    id: Count = 0


class Hello(Message, frozen=True):
    """The first message on every link, from the side that connected."""

    version: int
    role: Annotated[str, Meta(pattern=r"^(client|executor|resource-manager|worker)\Z")]
    name: Name
    program: Program = __version__
    credential: Annotated[str, Meta(max_length=4096)] = ""  # of control/munge.py


class Welcome(Message, frozen=True):
    """The answer to `Hello`; `nonce` is what proofs on this link are made over."""

    version: int
    role: Name
    name: Name
    program: Program = __version__
    nonce: Annotated[bytes, Meta(max_length=32)] = b""


def version_fault(theirs: Hello | Welcome, own: str) -> tuple[str, str]:
    """Text and hint where a peer speaks another version of the protocol; `own` names our side."""
    return (
        (
            f"{theirs.role} {theirs.name} (rfaas {theirs.program}) speaks version {theirs.version} "
            f"of the protocol, {own} (rfaas {__version__}) speaks {PROTOCOL_VERSION}"
        ),
        "install the same rfaas on both nodes",
    )


class Error(Message, frozen=True):
    """The answer to a request that failed; `code` as in `rfaas.errors`."""

    code: Name
    text: Text
    hint: Text = ""


class Done(Message, frozen=True):
    """The answer to a request that has nothing to tell."""


# Leases ------------------------------------------------------------------


class RequestLease(Message, frozen=True):
    """Ask for `cores` and `memory_bytes`, "all" are those of a node, for `duration_s`, renewable.

    `placement` is as in `core.placement`; `wait_s` how long the request may stand in the queue.
    """

    client: Name
    cores: Cores | Literal["all"]
    memory_bytes: Bytes | Literal["all"]
    duration_s: Seconds
    isolation: Name = "sandbox"
    image: ImageName = ""
    gpus: Gpus = 0
    placement: Literal["pack", "spread", "node"] = "pack"
    wait_s: Seconds = 0.0
    shared: bool = False  # with leases that say so too


class LeasePart(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A lease that was granted together with another one; the fields are LeaseGranted's."""

    lease: LeaseId
    node: Name
    address: Address
    cores: Cores
    memory_bytes: Bytes
    isolation: Name
    duration_s: Seconds
    token: Token
    secret: Proof
    gpus: Gpus = 0


class LeaseGranted(Message, frozen=True):
    """A lease: where it is, until when, and the token that the node checks.

    `secret` is the client's alone: with it, it proves that the lease is its own.  `rest` are the
    leases on other nodes that were granted with it; they end together.
    """

    lease: LeaseId
    node: Name
    address: Address
    cores: Cores
    memory_bytes: Bytes
    isolation: Name
    duration_s: Seconds
    token: Token
    secret: Proof = b""
    gpus: Gpus = 0
    rest: tuple[LeasePart, ...] = ()


class RenewLease(Message, frozen=True):
    """Answered with all leases that were granted together, whichever of them is named."""

    lease: LeaseId
    duration_s: Seconds
    proof: Proof = b""


class ReleaseLease(Message, frozen=True):
    """End a lease and those that were granted with it; can be sent twice."""

    lease: LeaseId
    proof: Proof = b""


class LeaseTerminating(Message, frozen=True):
    """A lease will end in `remaining_s`, whatever its client does; `cause` as in LeaseEnded."""

    lease: LeaseId
    cause: Name
    remaining_s: Seconds


class LeaseEnded(Message, frozen=True):
    """A lease is over; `cause` is one of released, expired, revoked, client-lost, node-lost."""

    lease: LeaseId
    cause: Name
    usage: Usage | None = None


class RevokeLease(Message, frozen=True):
    lease: LeaseId
    cause: Name


class Usage(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a lease used, summed over its lanes; nanoseconds.  Of GPUs: how long it held them."""

    allocated_ns: Count = 0
    polling_ns: Count = 0
    executing_ns: Count = 0
    calls: Count = 0
    failed: Count = 0
    gpu_ns: Count = 0
    busy: Count = 0  # requests turned away: the processor was another lease's


# Nodes -------------------------------------------------------------------


class JoinNode(Message, frozen=True):
    """An executor offers its node; `incarnation` is random per start of the executor.

    `lacks` has the parts that levels are without there, of those that are without any.
    """

    node: Name
    address: Address
    incarnation: LeaseId
    cores: Cores
    memory_bytes: Bytes
    isolation: Annotated[tuple[Name, ...], Meta(max_length=16)]
    leases: Annotated[tuple[LeaseId, ...], Meta(max_length=LEASES_PER_JOIN_MAX)] = ()
    lacks: Annotated[dict[Name, tuple[Name, ...]], Meta(max_length=16)] = field(
        default_factory=dict
    )
    gpus: Gpus = 0
    oversubscribe: Annotated[int, Meta(ge=1, le=64)] = 1


class NodeJoined(Message, frozen=True):
    """`key` signs the leases of this node; `revoked` are leases that it may no longer serve."""

    heartbeat_s: Seconds
    key: Annotated[bytes, Meta(min_length=32, max_length=32)]
    revoked: tuple[LeaseId, ...] = ()


class Beat(Message, frozen=True):
    """The node lives; what its leases have used so far.

    `crashes` counts the workers that died of themselves since the executor started, by cause.
    """

    node: Name
    usage: Annotated[dict[LeaseId, Usage], Meta(max_length=256)] = {}
    crashes: Annotated[dict[Name, Count], Meta(max_length=64)] = {}


class BeatTaken(Message, frozen=True):
    pass


class NodeReport(Struct, frozen=True, kw_only=True):
    node: Name
    address: Address
    state: Name
    cores: int
    cores_free: int
    memory_bytes: int
    memory_free_bytes: int
    leases: int
    beat_age_s: float
    gpus: int = 0
    gpus_free: int = 0
    shared: int = 0  # cores of leases that share
    shared_free: int = 0


class LeaseReport(Struct, frozen=True, kw_only=True):
    lease: LeaseId
    client: Name
    node: Name
    cores: int
    memory_bytes: int
    isolation: Name
    state: Name
    age_s: float
    remaining_s: float
    usage: Usage = Usage()
    gpus: int = 0
    shared: bool = False
    lacks: tuple[Name, ...] = ()  # of its level, at its node


class ListNodes(Message, frozen=True):
    after: Annotated[str, Meta(max_length=255)] = ""


class Nodes(Message, frozen=True):
    """A page of nodes in order of name; `more` when another page follows."""

    nodes: tuple[NodeReport, ...]
    more: bool = False


class ListLeases(Message, frozen=True):
    after: Annotated[str, Meta(max_length=32)] = ""
    all: bool = False


class Leases(Message, frozen=True):
    """A page of leases in order of id; `more` when another page follows."""

    leases: tuple[LeaseReport, ...]
    more: bool = False


class GetStatus(Message, frozen=True):
    pass


class StatusReport(Message, frozen=True):
    """One role's state in a few numbers; `facts` are for people."""

    role: Name
    name: Name
    version: Name
    pid: int
    uptime_s: float
    address: Address
    facts: dict[str, str | int | float]


# Workers -----------------------------------------------------------------


class OpenLease(Message, frozen=True):
    """Show a lease's token to the executor of its node, once for each grant or renewal."""

    token: Token
    proof: Proof = b""


class LeaseOpened(Message, frozen=True):
    lease: LeaseId
    remaining_s: Seconds


class SendLibrary(Message, frozen=True):
    """One part of a library, in order from offset 0; the last completes `size_bytes`."""

    lease: LeaseId
    sha256: Sha256
    size_bytes: Annotated[int, Meta(ge=1, le=LIBRARY_BYTES_MAX)]
    offset: Count
    data: Annotated[bytes, Meta(max_length=LIBRARY_PART_BYTES_MAX)]


class LendLibrary(Message, frozen=True):
    """The same over RDMA: where the executor may read the part until it has answered."""

    lease: LeaseId
    sha256: Sha256
    size_bytes: Annotated[int, Meta(ge=1, le=LIBRARY_BYTES_MAX)]
    offset: Count
    part_bytes: Annotated[int, Meta(ge=1, le=LIBRARY_LENT_BYTES_MAX)]
    address: Count
    key: Annotated[int, Meta(ge=0, le=2**32 - 1)]


class LibraryStored(Message, frozen=True):
    """`received` bytes are there, so the next part starts at that offset."""

    received: Count


class FormerLease(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A lease of this node that its client has given back, and the proof that it had it."""

    lease: LeaseId
    proof: Proof


class StartWorker(Message, frozen=True):
    """Start the lease's worker with this library: one lane per core.

    `hot_timeout_ms`: -1 stays hot for ever, 0 sleeps at once, else milliseconds
    since the last call.  The error `unavailable` asks for `SendLibrary`.
    `keep_warm`: it may be one that was kept of a `former` lease, and be kept in turn.
    `opens`: the lease is to be opened first, which saves its client a question.
    """

    lease: LeaseId
    sha256: Sha256
    slots: Annotated[int, Meta(ge=1, le=4096)]
    slot_bytes: Annotated[int, Meta(ge=1, le=2**31)]
    hot_timeout_ms: Annotated[int, Meta(ge=-1, le=2**31)]
    transport: Name = "auto"
    keep_warm: bool = True
    former: Annotated[tuple[FormerLease, ...], Meta(max_length=FORMER_MAX)] = ()
    opens: OpenLease | None = None


class Endpoint(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a worker listens for the connections of its lanes, and what lets a client in."""

    host: Address
    port: Annotated[int, Meta(ge=1, le=65535)]
    secret: Annotated[bytes, Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]


class WorkerStarted(Message, frozen=True):
    """The worker serves.  What its transport offers to the client comes along, or `endpoint`.

    `functions` are the names in order of their index; where they do not fit
    into one frame, `more` is set and `ListFunctions` brings the rest.  `steps_ns` are those of
    its start, by name, which together took as long as the answer did.
    """

    worker: Count
    transport: Name
    lanes: Cores
    slots: int
    slot_bytes: int
    cpus: tuple[int, ...]
    functions: tuple[Name, ...]
    more: bool = False
    endpoint: Endpoint | None = None
    steps_ns: dict[str, int] = {}
    isolation: Name = "process"  # the level that was obtained
    kept: bool = False  # from a former lease, with the state of its library
    lacks: Annotated[tuple[Name, ...], Meta(max_length=64)] = ()  # the parts that it has not
    gpus: tuple[Name, ...] = ()  # which of the node's it has


class ImageProgress(Message, frozen=True):
    """The lease's image is being fetched; `text` says how far."""

    lease: LeaseId
    text: Text


class ListFunctions(Message, frozen=True):
    """The table of functions from index `start` on; answered by `Functions`."""

    lease: LeaseId
    start: Count


class Functions(Message, frozen=True):
    functions: tuple[Name, ...]
    more: bool = False


class StopWorker(Message, frozen=True):
    """End the lease's worker at once; the lease lives on.

    `worker` is its number, 0 whichever serves: one that is gone already is not ended in the
    person of its successor.
    """

    lease: LeaseId
    worker: Count = 0
    reason: Text = ""


class WorkerStopped(Message, frozen=True):
    usage: Usage


class WorkerExited(Message, frozen=True):
    """The lease's worker is gone; its rings say ENDED.  `text` says how it died.

    `output` is the end of what it wrote to stdout and stderr.
    """

    lease: LeaseId
    worker: Count
    text: Text
    output: Annotated[bytes, Meta(max_length=OUTPUT_BYTES_MAX)] = b""


class AdoptLink(Message, frozen=True):
    """Serve the socket whose descriptor comes along as one more link."""
