"""The keeper: a trusted process beside each worker that another program confines.

bwrap, runc, podman and their like run `native/inside.c` in a container; the keeper starts
them, hands the worker its task over one socket, tells the executor what came of it, and
takes everything away again.  It is the process that the zygote knows as the worker: it
ends as the worker ended, and only when nothing is left.  It outlives neither its executor
(its link ends) nor an order to stop (SIGTERM).

The container's end does not depend on its engine: the first process in there sees its
socket close.
"""

from __future__ import annotations

import mmap
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from msgspec.structs import replace

from rfaas.control.link import Link
from rfaas.core.elf import ExportedFunction, read_functions
from rfaas.errors import PeerLostError, RfaasError, SystemCallError
from rfaas.native._worker import adopt_orphans, die_with_parent
from rfaas.paths import system_text
from rfaas.proto.codec import names_page
from rfaas.proto.messages import Error
from rfaas.proto.worker_messages import LibraryLoaded, LoadLibrary, WorkerDied
from rfaas.sandbox import cgroups, gpus, inside
from rfaas.sandbox import limits as limits_of
from rfaas.sandbox.end import End

if TYPE_CHECKING:
    from rfaas.proto.worker_messages import Gpu, Limits
    from rfaas.sandbox import Birth

CHANNEL_FD = 3  # the program's end of its socket
END_TIMEOUT_S = 1.5  # for an engine to go by itself, once its container is gone
SILENCE_S = 0.02  # after which an engine that passes words on has passed on all
TEXT_MAX = 4096  # of what an engine says before its container runs
PART_BYTES = 64 * 1024
PARTS_LAST = 4  # of what was printed last: a pipe holds one


class Container(Protocol):
    """One container to be: how to start it, and how to be sure that it is gone.

    `group` has the control groups of all in there, `limits` what its worker puts on itself.
    """

    what: str  # for messages: "bubblewrap", "the container (podman)"
    channel: str  # where the program finds its keeper: "3" inherited, or a socket's path inside
    listener: socket.socket | None  # of that path
    is_direct: bool  # whether what is printed comes to us by no other process
    enters: bool  # whether its engine is small enough to be in `group` itself, with all it starts
    group: cgroups.Group | None
    limits: list[tuple[int, int]]  # for setrlimit(2)
    gpus: tuple[Gpu, ...]  # whose devices are in there
    network: bool  # whether its network is for the function to use

    def command(self) -> Sequence[str]:
        """The command line that runs the container in the foreground."""

    def become(self) -> None:
        """In the process that is to be the engine, right before it is: its user."""

    def explain(self, status: int, text: str) -> RfaasError:
        """The engine ended before the worker was there: why, from its words."""

    def close(self, *, orderly: bool) -> None:
        """Remove what the engine left; it is gone itself, `orderly` where it was not killed."""


class Kept:
    """A keeper as the zygote sees it: see `sandbox.Confined`."""

    def __init__(self, pid: int, group: cgroups.Group | None) -> None:
        self.pid = pid
        self.group = group

    def kill(self) -> None:
        """Ask it to take its container away; it cannot be made to wait by what is in there."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def stop(self) -> tuple[int, int]:
        raise SystemCallError("what is in its container serves one lease")

    def has(self, pid: int) -> bool:
        """Orphans come to it."""
        return False

    def go_on(self) -> None:
        """Nothing: it is never stopped."""

    def reaped(self, status: int, cpu_ns: int) -> End:
        """What the keeper ended as, its worker did; its own time and its engine's is ours."""
        if self.group is None:
            return End(status)
        self.group.kill()  # where the keeper was killed itself
        end = End(status, self.group.reached(), self.group.cpu_ns())
        cgroups.of_node().remove(self.group)
        return end


def start(birth: Birth, prepare: Callable[[cgroups.Group | None], None], *, enters: bool) -> Kept:
    """Fork a keeper.

    Args:
        enters: whether the engine is in the control groups as well: see `Container`.
        prepare: called in it, with the control groups that its container is to be in.

    Raises:
        OSError: it cannot be forked.
        SystemCallError: no control group can be made, though some can.
    """
    group = cgroups.of_node().limited(birth.order.limits, birth.order.cpus, beside=int(enters))
    # Blocked until it is ready to hear: an order to stop that comes early is kept.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    zygote = os.getpid()
    try:
        pid = os.fork()
        if not pid:
            birth.run(zygote, lambda: prepare(group))
    except OSError:
        if group is not None:
            group.remove()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return Kept(pid, group)


def rlimits(limits: Limits) -> list[tuple[int, int]]:
    """Of setrlimit(2), what the worker inside puts on itself."""
    whole = bool(cgroups.of_node().why)
    return [(kind, value) for _, kind, value in limits_of.wanted(limits, whole=whole)]


def keep(link: Link, task: LoadLibrary, make: Callable[[], Container]) -> int:
    """Run one container for `task` until it ends, is to end, or the executor is gone.

    Returns the exit status; where a signal ended the worker, this process ends by it too.
    """
    keeper = _Keeper(link, task)
    try:
        keeper.run(make)
    except PeerLostError:
        pass
    except RfaasError as error:
        with suppress(PeerLostError):
            link.send(Error(id=task.id, code=error.code, text=error.text, hint=error.hint))
        keeper.status = keeper.status or 1 << 8
    finally:
        keeper.close()
    if os.WIFSIGNALED(keeper.status):
        number = os.WTERMSIG(keeper.status)
        signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None
        limits_of.limit("core dumps", resource.RLIMIT_CORE, limits_of.CORE_BYTES)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.kill(os.getpid(), number)
    return os.WEXITSTATUS(keeper.status)


class _Keeper:
    def __init__(self, link: Link, task: LoadLibrary) -> None:
        self._link = link
        self._task = task
        self._container: Container | None = None
        self._engine = 0
        self._sock: socket.socket | None = None
        self._words = -1  # what the engine and the worker print
        self._said = b""
        self._is_inside = False  # whether the container runs
        self._is_loaded = False  # whether the executor knows of it
        self._is_orderly = True  # whether the engine ended by itself
        self._fds = link.take_fds()
        self._wake, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.status = 0
        die_with_parent(signal.SIGTERM, "rfaas-keeper")
        adopt_orphans()  # what engines leave running is ours, not the zygote's
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        self._stopped = False
        signal.signal(signal.SIGTERM, self._stop)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def _stop(self, *_: object) -> None:
        self._stopped = True

    def run(self, make: Callable[[], Container]) -> None:
        """The whole life of a container."""
        begun = time.monotonic_ns()
        self._container = container = make()
        self._start_engine(container)
        library_fd, rings_fd, account_fd = self._fds
        # While the engine is at work.  Nothing of the library runs here: it is read as data.
        with mmap.mmap(library_fd, 0, prot=mmap.PROT_READ) as image:
            functions = read_functions(image, os.uname().machine)
        hello = self._next(inside.HELLO)
        if hello is None:
            return
        self._relay()  # what came before
        self._is_inside = True
        if container.group is not None and not container.enters:
            container.group.join(hello.pid)  # it waits for its task, and has started nothing
        steps = {"engine": time.monotonic_ns() - begun}
        self._hand_over(container, functions, (library_fd, rings_fd, account_fd))
        loaded = self._next(inside.LOADED)
        if loaded is None:
            return
        steps |= loaded.steps_ns
        names, start, more = [one.name for one in functions], 0, True
        while more:
            part, more = names_page(names, start)
            start += len(part)
            loaded_part = LibraryLoaded(
                id=self._task.id,
                functions=part,
                more=more,
                steps_ns=steps,
                inside=hello.pid,
            )
            self._link.send(loaded_part)
        self._is_loaded = True
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        self._next(inside.ENDED)

    def close(self) -> None:
        """Nothing of the container is left when this returns."""
        container = self._container
        if container is not None:
            self._end(container)
            self._wait_for_engine()
            container.close(orderly=self._is_orderly)
        _end_children()
        if self._words >= 0:
            self._relay(PARTS_LAST)

    def _end(self, container: Container) -> None:
        """Kill all in the container, and tell the executor: its engine takes longer to go."""
        if container.listener is not None:
            container.listener.close()
        if self._sock is not None:
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)  # its first process sees it, and ends
        if container.group is not None:
            container.group.kill()
        give_up_at = time.monotonic() + END_TIMEOUT_S
        while self._sock is not None and (left_s := give_up_at - time.monotonic()) > 0:
            if (
                select.select([self._sock], [], [], left_s)[0]
                and inside.receive(self._sock) is None
            ):
                break
        if not self._is_loaded:
            return
        silence_s = 0.0 if container.is_direct else SILENCE_S
        while select.select([self._words], [], [], silence_s)[0] and self._relay():
            if silence_s == 0.0:
                break
        group = container.group
        died = WorkerDied(pid=os.getpid(), status=self.status)
        if group is not None:
            died = replace(died, reached=group.reached(), cpu_ns=group.cpu_ns())
        with suppress(PeerLostError):
            self._link.send(died)

    def _start_engine(self, container: Container) -> None:
        theirs: socket.socket | None = None
        if container.listener is None:
            self._sock, theirs = inside.channel()
        self._words, words = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._words, False)
        command = list(container.command())
        keeper = os.getpid()
        group, born = container.group if container.enters else None, False
        self._engine, born = (os.fork(), False) if group is None else group.fork()
        if not self._engine:
            try:
                if group is not None:
                    _enter(group, born=born, words=words)
                os.dup2(words, 1)
                os.dup2(words, 2)
                if theirs is not None and theirs.fileno() == CHANNEL_FD:
                    os.set_inheritable(CHANNEL_FD, True)
                elif theirs is not None:
                    os.dup2(theirs.fileno(), CHANNEL_FD)
                container.become()
                signal.set_wakeup_fd(-1)
                signal.pthread_sigmask(signal.SIG_SETMASK, ())
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)
                die_with_parent(signal.SIGKILL, "rfaas-engine")
                if os.getppid() == keeper:
                    os.execvp(command[0], command)
            except OSError as error:
                os.write(2, f"{cannot_run(command[0], error.errno or 0)}\n".encode())
            finally:
                os._exit(127)
        os.close(words)
        if theirs is not None:
            theirs.close()

    def _hand_over(
        self, container: Container, functions: list[ExportedFunction], fds: Sequence[int]
    ) -> None:
        assert self._sock is not None
        task = self._task
        given = gpus.environment(container.gpus, alone=True) if container.gpus else {}
        variables = inside.variables(given)
        table = inside.table(task.cpus, functions, variables)
        table_fd = os.memfd_create("rfaas-task", os.MFD_CLOEXEC)
        try:
            os.write(table_fd, table)
            inside.send_task(
                self._sock,
                lanes=len(task.cpus),
                functions=len(functions),
                hot_timeout_ms=task.hot_timeout_ms,
                ring_bytes=task.ring_bytes,
                table_bytes=len(table),
                variables_bytes=len(variables),
                uses_devices=bool(container.gpus),
                uses_network=container.network,
                limits=container.limits,
                fds=(*fds, table_fd),
            )
        except ConnectionError:
            pass  # it is gone, and what comes next says so
        finally:
            os.close(table_fd)

    def _next(self, wanted: int) -> inside.Said | None:
        """The program's next word, `wanted`; None where all is to end, or the worker has ended.

        Raises:
            RfaasError: it, or its engine, could not do what was asked.
        """
        container = self._container
        assert container is not None
        poller = select.poll()
        source = self._sock or container.listener
        assert source is not None
        for fd in (self._link.fileno(), self._wake, self._words, source.fileno()):
            poller.register(fd, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poller.poll()}
            if self._words in ready and not self._relay():
                poller.unregister(self._words)
            if self._link.fileno() in ready:
                self._link.receive()  # nothing more is sent: this raises, at the end
            if self._stopped:
                self.status = signal.SIGKILL
                return None
            if source.fileno() in ready and self._sock is None:
                poller.unregister(source.fileno())
                self._sock = source = source.accept()[0]
                poller.register(source.fileno(), select.POLLIN)
            elif source.fileno() in ready:
                said = self._hear(wanted)
                if said is None or said.kind == wanted:
                    return said
            if self._wake in ready:
                with suppress(BlockingIOError):
                    os.read(self._wake, 4096)
                if self._reap_engine():
                    self._ended_early(wanted)
                    return None

    def _hear(self, wanted: int) -> inside.Said | None:
        """What the program says; None where the worker has ended and nobody waited for that."""
        assert self._sock is not None
        said = inside.receive(self._sock)
        if said is None:
            self._ended_early(wanted)
            return None
        if said.kind in (inside.FAILED, inside.FAILED_LIBRARY):
            raise inside.error_of(said)
        if said.kind == inside.ENDED:
            self.status = said.status
            return said if wanted == inside.ENDED else None
        return said

    def _ended_early(self, wanted: int) -> None:
        """The program or its engine is gone, and has not said how the worker ended."""
        assert self._container is not None
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        status = self._wait_for_engine()
        self._relay(PARTS_LAST)
        if wanted == inside.HELLO:
            text = self._said.decode("utf-8", "replace").strip()
            raise self._container.explain(status, text)
        # With its init: a limit of memory, or somebody's kill.
        self.status = status if os.WIFSIGNALED(status) else signal.SIGKILL

    def _relay(self, parts: int = 1) -> bool:
        """Pass on what was printed, at most so many parts of it; False at its end.

        What an engine says before its container runs is no output of a lease: it is kept for
        an error.  One part in between looks at all else: who floods us waits, and is heard no less.
        """
        for _ in range(parts):
            try:
                data = os.read(self._words, PART_BYTES)
            except BlockingIOError:
                return True
            if not data:
                return False
            if self._is_inside:
                with suppress(OSError):
                    os.write(2, data)
            else:
                self._said = (self._said + data)[-TEXT_MAX:]
        return True

    def _reap_engine(self) -> bool:
        """Whether the engine is gone; `_engine_status` is how."""
        while self._engine:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                return False
            if pid == self._engine:
                self._engine, self._engine_status = 0, status
        return True

    _engine_status = 0

    def _wait_for_engine(self) -> int:
        give_up_at = time.monotonic() + END_TIMEOUT_S
        while not self._reap_engine():
            left_s = give_up_at - time.monotonic()
            if left_s <= 0:
                self._is_orderly = False
                os.kill(self._engine, signal.SIGKILL)
                give_up_at += 3600.0
                continue
            ready = select.select([self._wake, self._words], [], [], left_s)[0]
            if self._words in ready and not self._relay():
                select.select([self._wake], [], [], max(0.0, give_up_at - time.monotonic()))
            with suppress(BlockingIOError):
                os.read(self._wake, 4096)
        return self._engine_status


def _enter(group: cgroups.Group, *, born: bool, words: int) -> None:
    """In the process that is to be the engine: it and all that it starts are limited."""
    try:
        group.enter(born=born)
    except OSError as error:
        os.write(words, f"it cannot be limited: {system_text(error)}\n".encode())
        os._exit(1)


def _end_children() -> None:
    """Kill and reap what the engine left to us: its monitor, its helpers."""
    own = os.getpid()
    while True:
        with suppress(FileNotFoundError), open(f"/proc/self/task/{own}/children") as children:
            for pid in map(int, children.read().split()):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def cannot_run(program: str, number: int) -> str:
    """What is said in place of an engine that could not be run, with the errno."""
    return f"{program}: {os.strerror(number)}"


def is_missing(status: int) -> bool:
    """Whether the engine's program could not be run at all."""
    return os.WIFEXITED(status) and os.WEXITSTATUS(status) == 127
