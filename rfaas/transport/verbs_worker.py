"""Transport `verbs`, the worker's part: register the rings, listen, let one client in.

The core that polls the NIC calls the function, so the client's code shares a
process with the queue pair: this is the trusted way.
"""

from __future__ import annotations

import secrets
import sys
from typing import TYPE_CHECKING

from rfaas.proto import wire
from rfaas.proto.messages import Endpoint
from rfaas.transport import verbs_errors
from rfaas.transport.counts import Counts

if TYPE_CHECKING:
    from rfaas.native._worker import Library
    from rfaas.proto.worker_messages import LoadLibrary


class VerbsLanes:
    """See the module's docstring; a `serve.Served`."""

    def __init__(self, task: LoadLibrary, library: Library, rings_fd: int, account_fd: int) -> None:
        """Listen at `task.host`.

        Raises:
            SystemCallError: the device or the memory cannot be had; says what and why.
        """
        native = verbs_errors.load()
        secret = secrets.token_bytes(wire.SECRET_BYTES)
        try:
            self._lanes = native.WorkerLanes(
                library,
                rings_fd,
                task.ring_bytes,
                account_fd,
                task.cpus,
                task.hot_timeout_ms,
                task.host,
                secret,
            )
        except native.Trouble as trouble:
            raise verbs_errors.of_trouble(trouble, f"serve over RDMA at {task.host}") from None
        self.endpoint: Endpoint | None = Endpoint(
            host=task.host, port=self._lanes.port, secret=secret
        )
        self._said: set[int] = set()
        self._counts = Counts(task.counts, account_fd, len(task.cpus))

    def filenos(self) -> tuple[int, ...]:
        events, notice = self._lanes.filenos()
        return events, notice

    def counts(self) -> Counts:
        return self._counts

    def step(self) -> None:
        """Answer who connects; say on stderr what broke a connection, once."""
        self._lanes.step()
        for index, fault in enumerate(self._lanes.faults()):
            if fault is not None and index not in self._said:
                self._said.add(index)
                if not verbs_errors.is_farewell(fault):
                    text = verbs_errors.of_fault(fault)
                    print(f"rfaas worker: lane {index}: {text}", file=sys.stderr, flush=True)

    def stop(self) -> None:
        self._lanes.stop()
