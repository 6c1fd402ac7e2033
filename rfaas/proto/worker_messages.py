"""The control plane's messages inside a node: executor, zygote and workers.  No I/O.

As those in messages.py, which has all that a node hears from outside.

    asks                    message           answered by
    executor -> zygote      SpawnWorker       WorkerSpawned (with the worker's end of a link)
                            KillWorker        (notice)
    zygote -> executor      WorkerDied        (notice)
    executor -> worker      LoadLibrary       LibraryLoaded... (with three descriptors)
    executor -> endpoint    ServeRings        RingsServed (with two descriptors)
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, field

from rfaas.proto.messages import Bytes, Count, Endpoint, Message, Name


class LoadLibrary(Message, frozen=True):
    """To a new worker: what to serve.  Descriptors: library, rings, accounting page.

    Ring i starts at `i * ring_bytes` and is served by a thread on `cpus[i]` (-1: anywhere).
    Over `verbs`, the worker listens for the client at `host`.
    """

    ring_bytes: Count
    cpus: tuple[int, ...]
    hot_timeout_ms: int
    memory_bytes: Bytes
    isolation: Name
    transport: Name = "shm"
    host: Annotated[str, Meta(max_length=255)] = ""


class LibraryLoaded(Message, frozen=True):
    """The worker's lanes run; a page of its table of functions, `more` until the last."""

    functions: tuple[Name, ...]
    more: bool = False
    endpoint: Endpoint | None = None
    steps_ns: dict[str, int] = field(default_factory=dict)


class ServeRings(Message, frozen=True):
    """To a new process: be the endpoint of a worker.  Descriptors: rings, accounting page.

    Ring i starts at `i * ring_bytes` and is fed by a thread on `cpus[i]` (-1: anywhere), which
    gives way while the worker calls if it `shares` that one's processor.
    """

    ring_bytes: Count
    cpus: tuple[int, ...]
    hot_timeout_ms: int
    host: Annotated[str, Meta(max_length=255)]
    shares: bool


class RingsServed(Message, frozen=True):
    """The endpoint listens for the worker's client."""

    endpoint: Endpoint


class SpawnWorker(Message, frozen=True):
    """Fork a worker; the descriptor that comes along is its end of a link."""


class WorkerSpawned(Message, frozen=True):
    pid: Count


class KillWorker(Message, frozen=True):
    """Kill a worker and all that it started."""

    pid: Count


class WorkerDied(Message, frozen=True):
    """A worker is gone; `status` as of waitpid(2)."""

    pid: Count
    status: int
