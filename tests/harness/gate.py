"""A call that tests can stop in its middle: the other end of tests/functions/held.c."""

from __future__ import annotations

import os
import select
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import pytest

from tests.harness.processes import PATIENCE_S, until


class Gate:
    """FIFOs on which `hold`, `spin` and their like say that they have begun."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = os.fsencode(path)  # the function's input
        self._go = f"{path}.go"
        os.mkfifo(path)
        os.mkfifo(self._go)
        self._reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def begun(self) -> int:
        """Return when the function runs: the process id of its worker."""
        text = b""
        while not text.endswith(b"\n"):
            ready = select.select([self._reader], [], [], PATIENCE_S)[0]
            if not ready:
                pytest.fail(f"no call began within {PATIENCE_S:g} s")
            with suppress(BlockingIOError):  # the end of an earlier writer was seen, a new one came
                text += os.read(self._reader, 64)
        return int(text)

    def is_held(self) -> bool:
        """Whether a process still holds the FIFO open, once the call has begun."""
        return not select.select([self._reader], [], [], 0)[0]

    def ended(self) -> None:
        """Return when every process that held the FIFO open is gone, or has closed it."""
        # EOF is there too while nobody has opened it yet: call `begun` before.
        if not select.select([self._reader], [], [], PATIENCE_S)[0]:
            pytest.fail(f"the call still runs after {PATIENCE_S:g} s")
        assert os.read(self._reader, 64) == b""

    def release(self) -> None:
        """Let `hold` return."""
        os.close(until(self._open_go, "somebody waits at the gate"))

    def _open_go(self) -> int:
        try:
            return os.open(self._go, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # ENXIO: the function has not come so far
            return 0

    def close(self) -> None:
        os.close(self._reader)

    def __enter__(self) -> Gate:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
