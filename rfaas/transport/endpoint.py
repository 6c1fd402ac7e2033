"""An endpoint's lanes: what owns the NIC for a worker that is not trusted with it.

They listen like a worker's own (`verbs_worker.py`), but take each call to the
worker's ring and each result out of it (`native/verbs_feed.h`).
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from rfaas.proto import wire
from rfaas.proto.messages import Endpoint
from rfaas.transport import verbs_errors

if TYPE_CHECKING:
    from rfaas.proto.worker_messages import ServeRings


class EndpointLanes:
    """See the module's docstring.  `faults` are those that have been seen, in words."""

    def __init__(self, task: ServeRings, rings_fd: int, account_fd: int) -> None:
        """Register the rings with the device at `task.host`, and listen there.

        Raises:
            SystemCallError: the device or the memory cannot be had; says what and why.
        """
        native = verbs_errors.load()
        secret = secrets.token_bytes(wire.SECRET_BYTES)
        try:
            self._lanes = native.WorkerLanes(
                None,
                rings_fd,
                task.ring_bytes,
                account_fd,
                task.cpus,
                task.hot_timeout_ms,
                task.host,
                secret,
                "together" if task.shares else "apart",
                task.turns,
            )
        except native.Trouble as trouble:
            raise verbs_errors.of_trouble(trouble, f"serve over RDMA at {task.host}") from None
        self.endpoint = Endpoint(host=task.host, port=self._lanes.port, secret=secret)
        self.faults: dict[int, str] = {}

    def filenos(self) -> tuple[int, ...]:
        """Descriptors that mean, when one is readable, that `step` has something to do."""
        events, notice = self._lanes.filenos()
        return events, notice

    def step(self) -> bool:
        """Answer who connects, take note of what broke; False if the worker is not believed."""
        self._lanes.step()
        believed = True
        for index, fault in enumerate(self._lanes.faults()):
            if fault is not None and index not in self.faults:
                if not verbs_errors.is_farewell(fault):
                    self.faults[index] = verbs_errors.of_fault(fault)
                believed &= not verbs_errors.is_nonsense(fault)
        return believed

    def stop(self) -> None:
        """End the lanes; what is in flight is answered: its worker is gone."""
        self._lanes.stop()
