"""`rfaas top` in a terminal of its own, and the tables that are printed again and again."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.processes import PATIENCE_S, wait_for_end
from tests.harness.site import RFAAS, Site

NODE = os.uname().nodename
CURSOR_HIDDEN, CURSOR_SHOWN = "\x1b[?25l", "\x1b[?25h"


class Terminal:
    """A program in a pseudo-terminal, which it controls as a person's shell would have it."""

    def __init__(self, site: Site, columns: int, lines: int, *words: str) -> None:
        self.ours, self._theirs = pty.openpty()
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.before = termios.tcgetattr(self._theirs)
        self.seen = ""
        self.process = subprocess.Popen(
            ["setsid", "--ctty", RFAAS, *words],
            env=site.environ | {"TERM": "xterm"},
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
        )

    def shows(self, *texts: str) -> None:
        """Return when each text was written since the last time."""
        give_up_at = time.monotonic() + PATIENCE_S
        begun = len(self.seen)
        while not all(text in self.seen[begun:] for text in texts):
            left_s = max(0.0, give_up_at - time.monotonic())
            if not select.select([self.ours], [], [], left_s)[0]:
                pytest.fail(f"{texts} never shown:\n{self.seen[begun:]}")
            self.seen += os.read(self.ours, 65536).decode(errors="replace")

    def type(self, keys: str) -> None:
        os.write(self.ours, keys.encode())

    def ends(self) -> int:
        """Its exit status, once it has ended and all that it wrote is seen."""
        while self.process.poll() is None or select.select([self.ours], [], [], 0)[0]:
            if select.select([self.ours], [], [], 0.05)[0]:
                self.seen += os.read(self.ours, 65536).decode(errors="replace")
        return self.process.returncode

    def is_sane(self) -> bool:
        """Whether lines are edited and shown as before, and the cursor with them."""
        hidden, shown = self.seen.rfind(CURSOR_HIDDEN), self.seen.rfind(CURSOR_SHOWN)
        return termios.tcgetattr(self._theirs) == self.before and shown >= hidden

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.ours)
        os.close(self._theirs)


@pytest.fixture
def terminal(site: Site) -> Iterator[Callable[..., Terminal]]:
    made: list[Terminal] = []

    def open_(*words: str, columns: int = 120, lines: int = 40) -> Terminal:
        made.append(Terminal(site, columns, lines, *words))
        return made[-1]

    yield open_
    for one in made:
        one.close()


@pytest.mark.parametrize("flags", [(), ("--plain",)])
@pytest.mark.parametrize("end", ["q", "\x03"])
def test_top_follows_and_leaves_the_terminal_as_it_was(
    site: Site, held: Path, terminal: Callable[..., Terminal], flags: tuple[str, ...], end: str
) -> None:
    site.start("all")
    top = terminal("top", *flags)
    top.shows(NODE, "2 cores: 2 free", "no lease is live")
    with site.session() as session, session.lease(library=held) as lease:
        top.shows(lease.id[:8], "lease-granted")
    top.shows("2 cores: 2 free", "lease-ended")
    top.type(end)
    status = top.ends()
    assert status == (0 if end == "q" else 128 + signal.SIGINT), top.seen
    assert top.is_sane()
    assert "Traceback" not in top.seen


@pytest.mark.parametrize("flags", [(), ("--plain",)])
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGHUP])
def test_top_that_is_ended_leaves_the_terminal_as_it_was(
    site: Site, terminal: Callable[..., Terminal], flags: tuple[str, ...], end: signal.Signals
) -> None:
    site.start("all")
    top = terminal("top", *flags)
    top.shows(NODE, "no lease is live")
    assert not top.is_sane(), "keys come one by one, and are not shown"
    top.process.send_signal(end)
    assert top.ends() == 128 + end, top.seen
    assert top.is_sane()
    assert "Traceback" not in top.seen


@pytest.mark.parametrize("flags", [(), ("--plain",)])
def test_top_in_a_narrow_terminal(
    site: Site, terminal: Callable[..., Terminal], flags: tuple[str, ...]
) -> None:
    site.start("all")
    top = terminal("top", *flags, columns=30, lines=8)
    top.shows("calls/s")
    top.type("q")
    assert top.ends() == 0
    assert top.is_sane()


def test_top_waits_for_the_manager(site: Site, terminal: Callable[..., Terminal]) -> None:
    manager = site.start("resource-manager")
    site.start("executor")
    top = terminal("top")
    top.shows("1 nodes up")
    site.kill(manager)
    top.shows("lost the resource manager, looking for it")
    site.start("resource-manager")
    top.shows("1 nodes up")
    top.type("q")
    assert top.ends() == 0
    assert top.is_sane()


@pytest.mark.parametrize("command", ["nodes", "leases", "bills", "events"])
def test_watch(site: Site, held: Path, command: str) -> None:
    """Each prints what changes, until it is interrupted."""
    site.start("all")
    watching = site.command(command, "--json", "--watch", "0.1")
    with site.session() as session, session.lease(library=held) as lease:
        wanted = {"nodes": '"cores_free":1'}.get(command, f'"{lease.id}"')
        while wanted not in (line := watching.lines.next() or ""):
            assert line, watching.stderr
    json.loads(line)
    watching.signal(signal.SIGINT)
    assert watching.wait() in (-signal.SIGINT, 128 + signal.SIGINT)
    wait_for_end(watching.pid)
    assert "Traceback" not in watching.stderr


@pytest.mark.parametrize("command", ["nodes", "leases", "bills", "events"])
def test_watch_in_a_terminal(site: Site, terminal: Callable[..., Terminal], command: str) -> None:
    site.start("all")
    watching = terminal(command, "--watch", "0.1")
    for _ in range(2):
        watching.shows("\x1b[H\x1b[J")
    watching.type("\x03")
    watching.ends()
    assert watching.is_sane()
    assert "Traceback" not in watching.seen
