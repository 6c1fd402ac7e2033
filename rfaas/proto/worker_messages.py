"""The control plane's messages inside a node: executor, zygote and workers.  No I/O.

As those in messages.py, which has all that a node hears from outside.

    asks                    message           answered by
    zygote -> executor      LevelsFound       (notice, its first)
    executor -> zygote      SpawnWorker       WorkerSpawned (with the worker's end of a link)
                            StopProcess       ProcessStopped
                            ResumeProcess     ProcessResumed
                            KillWorker        (notice)
    zygote -> executor      WorkerDied        (notice)
    executor -> worker      LoadLibrary       LibraryLoaded... (with three descriptors, and those
                                              of `turns`; to one that was kept with one more:
                                              its new stderr)
                            LeaveLanes        LanesLeft
    executor -> endpoint    ServeRings        RingsServed (with two descriptors)
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from rfaas.proto.messages import Bytes, Count, Endpoint, ImageName, Message, Name, Text

TURNS_MAX = 128  # lanes of a worker that shares processors; scm(7) takes 253 descriptors at once
WORKER_FDS_MAX = 4 + TURNS_MAX  # of LoadLibrary

LimitReached = Literal["", "memory", "processes"]  # of a worker's control group


class Limits(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a worker and all that it starts may use, beside its lanes' threads; 0: no limit."""

    lanes: Count = 0
    memory_bytes: Bytes = 0
    shared_bytes: Bytes = 0  # of its rings: mapped, and taken where they are touched
    locked_bytes: Bytes = 0  # of them, where its NIC may lock them, beside the memory
    processes: Count = 0  # and threads
    open_files: Count = 0
    file_bytes: Bytes = 0


class Gpu(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A GPU of the node: of which kind (diagnose/gpus.py), and what its worker must be given.

    `visible` is what its library's variable calls it: a UUID, or an index.
    """

    name: Name
    kind: Name
    visible: Name
    nodes: tuple[Text, ...]  # its own device, then those that all of its kind share


class Lack(Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a level that cannot be had on this node."""

    part: Name  # "cgroup", "user", "landlock", ...
    why: Text  # with the system's own word
    hint: Text = ""


class Places(Struct, frozen=True, forbid_unknown_fields=True):
    """Where control groups are made (`sandbox.cgroups`): of each controller, which version of them
    has it, and the folder; `kill` is that of version 2."""

    version: dict[str, int]
    folders: dict[str, str]


class LevelsFound(Message, frozen=True):
    """The levels that there are, what each lacks here, and where the groups of workers are."""

    levels: dict[Name, tuple[Lack, ...]]
    places: Places


class LoadLibrary(Message, frozen=True):
    """To a new worker: what to serve.  Descriptors: library, rings, accounting page.

    Ring i starts at `i * ring_bytes` and is served by a thread on `cpus[i]` (-1: anywhere).
    Where it shares processors, `turns` more descriptors follow: the lock for each thread.
    Over `verbs`, the worker listens for the client at `host` and adds what it counts at `counts`.
    `degrade` names the parts of its level that may be missing here.
    """

    ring_bytes: Count
    cpus: tuple[int, ...]
    hot_timeout_ms: int
    isolation: Name
    limits: Limits = Limits()
    degrade: tuple[Name, ...] = ()
    transport: Name = "shm"
    host: Annotated[str, Meta(max_length=255)] = ""
    counts: Endpoint | None = None
    turns: Annotated[int, Meta(ge=0, le=TURNS_MAX)] = 0


class LeaveLanes(Message, frozen=True):
    """Its lease is over: end the lanes, let go of their memory, and wait for another task."""


class LanesLeft(Message, frozen=True):
    """Nothing of that lease is mapped any more; the library stays loaded."""


class LibraryLoaded(Message, frozen=True):
    """The worker's lanes run; a page of its table of functions, `more` until the last."""

    functions: tuple[Name, ...]
    more: bool = False
    endpoint: Endpoint | None = None
    steps_ns: dict[str, int] = field(default_factory=dict)
    inside: Count = 0  # from a keeper: the first process of what it keeps


class ContainerTask(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which image a worker of level `container` runs in, and by what.

    `image` is its name as the engine knows it, `root` its unpacked tree where the engine takes
    one, `options` the node's keys of `[container]`.
    """

    engine: Name
    image: ImageName
    root: Text = ""
    options: dict[Name, Text] = field(default_factory=dict)


class ServeRings(Message, frozen=True):
    """To a new process: be the endpoint of a worker.  Descriptors: rings, accounting page.

    Ring i starts at `i * ring_bytes` and is fed by a thread on `cpus[i]` (-1: anywhere), which
    gives way while the worker calls if it `shares` that one's processor.  Where the worker takes
    `turns` with those of other leases, it may answer that it is busy.
    """

    ring_bytes: Count
    cpus: tuple[int, ...]
    hot_timeout_ms: int
    host: Annotated[str, Meta(max_length=255)]
    shares: bool
    counts: Endpoint | None = None
    turns: bool = False


class RingsServed(Message, frozen=True):
    """The endpoint listens for the worker's client."""

    endpoint: Endpoint


class SpawnWorker(Message, frozen=True):
    """Start a worker at a level of isolation; two descriptors: its end of a link, its stderr.

    It may use the processors `cpus`, where they are known.  One that waits in a pool has no lease
    yet: its group gets its limits once it has one.
    """

    isolation: Name
    limits: Limits = Limits()
    cpus: tuple[int, ...] = ()
    container: ContainerTask | None = None
    gpus: tuple[Gpu, ...] = ()


class WorkerSpawned(Message, frozen=True):
    """A worker runs; `group` is the name of its control groups, if it has some."""

    pid: Count
    group: Text = ""


class StopProcess(Message, frozen=True):
    """Stop all threads of a worker that is kept; an error where it is not alone."""

    pid: Count


class ProcessStopped(Message, frozen=True):
    """It is: process `stopped`, which `pid` may be the init of, has used `cpu_ticks` so far."""

    stopped: Count
    cpu_ticks: Count


class ResumeProcess(Message, frozen=True):
    """A worker that was stopped is handed to a lease: it goes on."""

    pid: Count


class ProcessResumed(Message, frozen=True):
    """It runs: it may have its task."""


class KillWorker(Message, frozen=True):
    """Kill a worker and all that it started."""

    pid: Count


class WorkerDied(Message, frozen=True):
    """A worker is gone; `status` as of waitpid(2), `reached` the limit that it ran into.

    `cpu_ns` is the processor time of all that it started, where that was counted.
    """

    pid: Count
    status: Annotated[int, Meta(ge=0, le=0xFFFF)]
    reached: LimitReached = ""
    cpu_ns: Count = 0
