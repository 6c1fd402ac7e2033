"""Waiting for what happens in other processes, and finding them.

Where the system gives an event (a line in a pipe, the end of a process) it is
waited for; `until` polls for what gives none.  Each wait has one long deadline:
to pass it is to hang, however slow the machine.
"""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeVar

import pytest

PATIENCE_S = 20.0
POLL_S = 0.005
ENDED = ("Z", "X")  # proc_pid_stat(5): waits to be reaped, or is being

Value = TypeVar("Value")


def until(look: Callable[[], Value], what: str, patience_s: float = PATIENCE_S) -> Value:
    """The first true value that `look` returns."""
    give_up_at = time.monotonic() + patience_s
    while not (found := look()):
        if time.monotonic() > give_up_at:
            pytest.fail(f"not within {patience_s:g} s: {what}; it is {found!r}")
        time.sleep(POLL_S)
    return found


class Lines:
    """The lines that a process writes to a pipe."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._rest = b""

    def next(self, patience_s: float = PATIENCE_S) -> str | None:
        """The next line without its end, None at the end of the stream."""
        give_up_at = time.monotonic() + patience_s
        while b"\n" not in self._rest:
            left_s = give_up_at - time.monotonic()
            if not select.select([self._pipe], [], [], max(0.0, left_s))[0]:
                pytest.fail(f"no line within {patience_s:g} s; so far: {self._rest!r}")
            data = os.read(self._pipe.fileno(), 65536)
            if not data:
                return None
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def until(self, beginning: str) -> str:
        """The next line that begins so."""
        seen = []
        while (line := self.next()) is not None:
            if line.startswith(beginning):
                return line
            seen.append(line)
        pytest.fail(f"the stream ended before a line that begins with {beginning!r}: {seen}")


class Child:
    """A process of ours, in a group of its own; `stderr` is read from a file."""

    def __init__(self, command: list[str], environ: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                command,
                env=environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )
        assert self.process.stdout
        self.lines = Lines(self.process.stdout)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stderr(self) -> str:
        return self.log.read_text(errors="replace")

    def say(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self.process.stdin
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def signal_group(self, number: int) -> None:
        """As a terminal does with Ctrl-C."""
        os.killpg(self.pid, number)

    def wait(self, patience_s: float = PATIENCE_S) -> int:
        """Its exit status, once it has ended; minus the signal's number if one killed it."""
        try:
            return self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"process {self.pid} did not end within {patience_s:g} s:\n{self.stderr}")

    def rest(self) -> str:
        """All that it still writes to standard output, until it closes that."""
        found = []
        while (line := self.lines.next()) is not None:
            found.append(line)
        return "\n".join(found)

    def close(self) -> None:
        """End it, if it runs, and let go of its pipes."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            pipe.close()


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return _stat(pid)[0] not in ENDED
    except OSError:
        return False


def parent_of(pid: int) -> int:
    """The parent of a process that is there."""
    return int(_stat(pid)[1])


def descendants(pid: int) -> Iterator[int]:
    """The processes that `pid` has started, and theirs."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parents[int(entry)] = parent_of(int(entry))
            except OSError:
                continue
    found = [pid]
    while found:
        parent = found.pop()
        children = [child for child, its in parents.items() if its == parent]
        yield from children
        found += children


def workers_of(pid: int, name: str = "rfaas-worker") -> list[int]:
    """The workers that run below a process; one that is dead and not yet reaped does not."""
    return [child for child in descendants(pid) if _name(child) == name and is_alive(child)]


def endpoints_of(pid: int) -> list[int]:
    """The endpoints that run below a process."""
    return workers_of(pid, "rfaas-endpoint")


def wait_for_end(*pids: int) -> None:
    """Return when processes that need not be our children are gone."""
    until(lambda: not any(map(is_alive, pids)), f"the end of processes {pids}")


def _stat(pid: int) -> list[str]:
    """State, parent and what follows, proc_pid_stat(5); the name before may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
