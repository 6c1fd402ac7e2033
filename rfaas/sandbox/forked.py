"""A worker that is a plain child of the zygote, and leads a session of its own.

Where it has a control group, it is in there before it does anything else: born in that of
version 2, and entering those of version 1 by itself, neither of which makes the kernel wait.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from rfaas.errors import SystemCallError
from rfaas.paths import system_text
from rfaas.sandbox import cgroups, gpus, stopping
from rfaas.sandbox.end import End

if TYPE_CHECKING:
    from rfaas.sandbox import Birth


class Forked:
    """See `sandbox.Confined`."""

    def __init__(self, pid: int, group: cgroups.Group | None) -> None:
        self.pid = pid
        self.group = group
        self._stopped = False

    def kill(self) -> None:
        """Kill it and its groups; what has left those is the zygote's to find."""
        if self.group is not None:
            self.group.kill()
        for kill in (os.kill, os.killpg):
            with suppress(ProcessLookupError, PermissionError):  # set-user-ID: another user
                kill(self.pid, signal.SIGKILL)

    def stop(self) -> tuple[int, int]:
        self._stopped = True
        found = stopping.stop(self.pid)
        if self.group is not None and (others := self.group.processes() - {self.pid}):
            raise SystemCallError(f"its group has {len(others)} processes beside it")
        return found

    def has(self, pid: int) -> bool:
        return self.group is not None and pid in self.group.processes()

    def go_on(self) -> None:
        if self._stopped:
            self._stopped = False
            os.kill(self.pid, signal.SIGCONT)

    def reaped(self, status: int, cpu_ns: int) -> End:
        if self.group is None:
            return End(status, cpu_ns=cpu_ns)
        end = End(status, self.group.reached(), max(cpu_ns, self.group.cpu_ns()))
        cgroups.of_node().remove(self.group)
        return end


def fork(
    birth: Birth,
    group: cgroups.Group | None = None,
    failed: Callable[[SystemCallError], None] = lambda _: None,
) -> Forked:
    """Fork the worker, into `group` if it is to have one.

    Args:
        failed: called in the worker where it cannot enter its group.

    Raises:
        OSError: it cannot be forked.
    """
    parent = os.getpid()
    pid, born = group.fork() if group is not None else (os.fork(), False)

    def prepare() -> None:
        try:
            if group is not None:
                group.enter(born=born)
        except OSError as error:
            failed(SystemCallError(f"cannot limit a worker: {system_text(error)}"))
        gpus.see(birth.order.gpus, alone=False)

    if not pid:
        birth.run(parent, prepare)
    return Forked(pid, group)
