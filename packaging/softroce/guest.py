"""One run of a guest: the job that it is given, and the pipes that it answers on.

The guest has three lines to us: what the command writes, what it complains, and
*control*, on which it says `ready` and `exit STATUS`.  What kind of machine it is
stands in user_mode.py and emulated.py; what happens inside it in guest/.
"""

from __future__ import annotations

import os
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

SCRIPTS = Path(__file__).resolve().parent / "guest"
JOBS = Path("/tmp")  # there is no blank in its name, which the kernel's command line forbids
JOB = "rfaas-guest-"
EXIT_TIMEOUT = 124  # as timeout(1)
POWER_OFF_S = 5.0  # from the command's end to the machine's; then it is killed
CHUNK_BYTES = 1 << 16
CONSOLE_LINES = 30


class MachineError(Exception):
    """The machine could not be made, or failed."""


@dataclass(frozen=True)
class Request:
    """What is to be run, and where."""

    command: Sequence[str]
    directory: str
    environ: dict[str, str]
    writable: Sequence[str]
    two_hosts: bool
    timeout_s: float
    cpus: int
    memory_mib: int
    console: str | None
    verbose: bool


class Machine(Protocol):
    """A kind of machine."""

    @property
    def ports(self) -> Sequence[str]:
        """Control, output, errors, as the guest names them."""

    @property
    def can_two_hosts(self) -> bool:
        """Whether SoftRoCE works in network namespaces there."""

    def mounts(self, request: Request) -> list[str]:
        """Lines of sh that mount what is writable (and the like) below $root."""

    def command(self, request: Request, job: Path, descriptors: Sequence[int]) -> list[str]:
        """What starts it, with `descriptors` as the other ends of `ports`."""


def say(text: str) -> None:
    """A line of the runner's own."""
    print(f"softroce: {text}", file=sys.stderr, flush=True)


def run(machine: Machine, request: Request) -> int:
    """The exit status of the command.

    Raises:
        MachineError: the machine failed before the command had ended.
    """
    if request.two_hosts and not machine.can_two_hosts:
        raise MachineError(
            "Debian's kernel keeps SoftRoCE devices out of network namespaces\n"
            "hint: `make softroce` builds one that has them there"
        )
    sweep()
    job = Path(tempfile.mkdtemp(prefix=f"{JOB}{os.getpid()}-", dir=JOBS))
    try:
        write_job(job, machine, request)
        return attend(machine, request, job)
    finally:
        shutil.rmtree(job, ignore_errors=True)


def sweep() -> None:
    """Take away what runners left that were killed outright."""
    for path in JOBS.glob(f"{JOB}*"):
        pid = path.name.removeprefix(JOB).partition("-")[0]
        if not Path("/proc", pid).exists():
            shutil.rmtree(path, ignore_errors=True)


def write_job(job: Path, machine: Machine, request: Request) -> None:
    """All that the guest needs to know, in a directory that it reads."""
    shutil.copytree(SCRIPTS, job, dirs_exist_ok=True)
    exports = [
        f"export {name}={shlex.quote(value)}"
        for name, value in sorted(request.environ.items())
        if name.isidentifier() and name.isascii()
    ]
    command = [
        *exports,
        "export RFAAS_GUEST=1",
        f"cd {shlex.quote(request.directory)} || exit 125",
        f"exec {shlex.join(request.command)}",
    ]
    texts = {
        "command.sh": command,
        "mounts.sh": machine.mounts(request),
        "ports": machine.ports,
        "network": ["two-hosts.sh" if request.two_hosts else "one-cable.sh"],
        "cpuinfo": Path("/proc/cpuinfo").read_text().splitlines(),
    }
    for name, lines in texts.items():
        Path(job, name).write_text("\n".join(lines) + "\n")


@dataclass
class Progress:
    """What the guest has said on its control line."""

    started_at: float = field(default_factory=time.monotonic)
    ready_at: float | None = None
    ended_at: float | None = None
    status: int | None = None
    _rest: bytes = b""

    def deadline(self, timeout_s: float) -> float:
        """When to give up: on the command, or once that has ended on the machine."""
        return self.started_at + timeout_s if self.ended_at is None else self.ended_at + POWER_OFF_S

    def hear(self, data: bytes) -> None:
        """Take in bytes of the control line."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            match line.split():
                case [b"ready"]:
                    self.ready_at = time.monotonic()
                case [b"exit", status]:
                    self.ended_at = time.monotonic()
                    self.status = int(status)


def attend(machine: Machine, request: Request, job: Path) -> int:
    """Start the machine, pass on what it says, see it off."""
    pairs = [os.pipe() for _ in machine.ports]
    console = job / "console"
    command = machine.command(request, job, [writer for _, writer in pairs])
    if shutil.which("setpriv"):  # else it would outlive us where we are killed outright
        command = ["setpriv", "--pdeathsig", "KILL", *command]
    try:
        with console.open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[writer for _, writer in pairs],
                start_new_session=True,
            )
    finally:
        for _, writer in pairs:
            os.close(writer)
    progress = Progress()
    try:
        in_time = listen(process.pid, [reader for reader, _ in pairs], progress, request.timeout_s)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for reader, _ in pairs:
            os.close(reader)
        if request.console:
            shutil.copyfile(console, request.console)
    return verdict(progress, in_time, request, console)


def listen(pid: int, readers: Sequence[int], progress: Progress, timeout_s: float) -> bool:
    """Pass on output until the machine is gone; False where its time was up first."""
    actions = (progress.hear, partial(write_all, 1), partial(write_all, 2))
    takers: dict[int, Callable[[bytes], None]] = dict(zip(readers, actions, strict=True))
    pidfd = os.pidfd_open(pid)
    try:
        with selectors.DefaultSelector() as selector:
            for descriptor in (*readers, pidfd):
                selector.register(descriptor, selectors.EVENT_READ)
            while (now := time.monotonic()) < progress.deadline(timeout_s):
                left_s = progress.deadline(timeout_s) - now
                ready = [key.fd for key, _ in selector.select(left_s)]
                for reader in ready:
                    if reader == pidfd:
                        continue
                    if data := os.read(reader, CHUNK_BYTES):
                        takers[reader](data)
                    else:
                        selector.unregister(reader)
                if pidfd in ready:
                    for reader, take in takers.items():
                        take_rest(reader, take)
                    return True
    finally:
        os.close(pidfd)
    return progress.status is not None


def take_rest(reader: int, take: Callable[[bytes], None]) -> None:
    """What a pipe still holds, whether or not somebody keeps its other end open."""
    os.set_blocking(reader, False)
    with suppress(BlockingIOError):
        while data := os.read(reader, CHUNK_BYTES):
            take(data)


def write_all(descriptor: int, data: bytes) -> None:
    """Write, whatever the reader takes at a time."""
    while data:
        data = data[os.write(descriptor, data) :]


def verdict(progress: Progress, in_time: bool, request: Request, console: Path) -> int:
    """The exit status, or what went wrong with the machine."""
    if progress.status is not None:
        if request.verbose and progress.ready_at and progress.ended_at:
            say(
                f"ready after {progress.ready_at - progress.started_at:.2f} s, "
                f"command {progress.ended_at - progress.ready_at:.2f} s, "
                f"gone after {time.monotonic() - progress.ended_at:.2f} s more"
            )
        return progress.status
    if progress.ready_at is not None and not in_time:
        say(f"the command did not end within {request.timeout_s:g} s")
        return EXIT_TIMEOUT
    what = "ended before the command did" if in_time else f"not ready after {request.timeout_s:g} s"
    lines = console.read_text(errors="replace").splitlines()[-CONSOLE_LINES:]
    raise MachineError("\n".join([f"the machine {what}; its console:", *lines]))
