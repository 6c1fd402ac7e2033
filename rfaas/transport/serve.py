"""A worker's lanes over each transport: what feeds them, and what the worker has to do for it.

Apart from the rest of the package because a worker loads only this: it carries
nothing of a client's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rfaas.native._worker import Library
    from rfaas.proto.messages import Endpoint
    from rfaas.proto.worker_messages import LoadLibrary
    from rfaas.transport.counts import Counts


class Served(Protocol):
    """The running lanes of a worker."""

    endpoint: Endpoint | None  # where the client finds them; None: by the descriptors it has

    def filenos(self) -> tuple[int, ...]:
        """Descriptors that mean, when one is readable, that `step` has something to do."""

    def step(self) -> None:
        """Do what is to be done now; never waits."""

    def counts(self) -> Counts | None:
        """What is to be told of them now and then, None: nothing."""

    def stop(self) -> None:
        """End the lanes and let go of their memory; returns when their threads are gone."""


class RingLanes:
    """Over `shm`: the client writes into the rings, and nothing is to be done."""

    endpoint: Endpoint | None = None

    def __init__(
        self,
        task: LoadLibrary,
        library: Library,
        rings_fd: int,
        account_fd: int,
        turns: tuple[int, ...],
    ) -> None:
        from rfaas.native._worker import WorkerLanes

        self._lanes = WorkerLanes(
            library, rings_fd, task.ring_bytes, account_fd, task.cpus, task.hot_timeout_ms, turns
        )

    def filenos(self) -> tuple[int, ...]:
        return ()

    def step(self) -> None:
        pass

    def counts(self) -> Counts | None:
        return None

    def stop(self) -> None:
        self._lanes.close()


def serve(
    task: LoadLibrary, library: Library, rings_fd: int, account_fd: int, turns: tuple[int, ...] = ()
) -> Served:
    """Start the lanes of a worker over the transport that its task names.

    Args:
        turns: the lock of each lane's processor, where they share them; now the lanes'.

    Raises:
        SystemCallError: they cannot be had.
    """
    if task.transport == "verbs":
        from rfaas.transport.verbs_worker import VerbsLanes

        return VerbsLanes(task, library, rings_fd, account_fd)
    return RingLanes(task, library, rings_fd, account_fd, turns)
