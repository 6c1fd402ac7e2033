"""A worker that is a plain child of the zygote, and leads a session of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from rfaas.sandbox import gpus, stopping
from rfaas.sandbox.end import End

if TYPE_CHECKING:
    from rfaas.proto.worker_messages import Limits
    from rfaas.sandbox import Birth


class Forked:
    """See `sandbox.Confined`."""

    cpu_file = ""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._stopped = False

    def kill(self) -> None:
        """Kill it and its group; what has left the group is the zygote's to find."""
        for kill in (os.kill, os.killpg):
            with suppress(ProcessLookupError):
                kill(self.pid, signal.SIGKILL)

    def limit(self, limits: Limits, cpus: Sequence[int]) -> None:
        """Nothing: it limits itself when it gets its task."""

    def stop(self) -> tuple[int, int]:
        self._stopped = True
        return stopping.stop(self.pid)

    def go_on(self) -> None:
        if self._stopped:
            self._stopped = False
            os.kill(self.pid, signal.SIGCONT)

    def reaped(self, status: int, cpu_ns: int) -> End:
        return End(status, cpu_ns=cpu_ns)


def fork(birth: Birth) -> Forked:
    """Fork the worker.  Raises OSError where it cannot be."""
    parent = os.getpid()
    pid = os.fork()
    if not pid:
        birth.run(parent, lambda: gpus.see(birth.order.gpus, alone=False))
    return Forked(pid)
