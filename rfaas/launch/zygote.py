"""The zygote: a small process, warm and single-threaded, that forks workers.

The executor forks it first, before it has threads, an event loop or devices.
It has loaded what a worker needs, so a worker starts in the time of a fork.
When the executor dies, its end of the link closes, and the zygote ends all workers
and what they have started; when the zygote is killed, the kernel ends its workers.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NamedTuple, NoReturn

from rfaas import sandbox
from rfaas.config import ContainerConfig, SandboxConfig
from rfaas.control.carrier import SocketCarrier
from rfaas.control.link import Link
from rfaas.errors import PeerLostError, RfaasError, SystemCallError
from rfaas.proto.codec import LENGTH, decode, encode
from rfaas.proto.messages import Error
from rfaas.proto.worker_messages import (
    WORKER_FDS_MAX,
    KillWorker,
    LevelsFound,
    LibraryLoaded,
    LoadLibrary,
    ProcessResumed,
    ProcessStopped,
    ResumeProcess,
    SpawnWorker,
    StopProcess,
    WorkerDied,
    WorkerSpawned,
)
from rfaas.sandbox import cgroups

DESCRIPTORS_MAX = 4096  # where /proc does not say which are open; 1 ms

WorkerMain = Callable[[Link], int]
Workers = dict[int, sandbox.Confined]


class Started(NamedTuple):
    """A zygote: its process id, the end of its link, and what it was told of its node."""

    pid: int
    sock: socket.socket
    node: SandboxConfig


def start(
    load: Callable[[], WorkerMain],
    node: SandboxConfig,
    container: ContainerConfig = ContainerConfig(),  # noqa: B008 - frozen
) -> Started:
    """Fork the zygote.

    In the zygote, `load` is called once: it imports what workers need and returns
    what each of them runs.  Call this while the process is single-threaded.  The
    zygote closes all but its own link and the standard streams.  `node` and `container` say
    what levels of isolation may be like here.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    parent = os.getpid()
    pid = os.fork()
    if pid:
        theirs.close()
        return Started(pid, ours, node)
    status = 70
    try:
        ours.detach()
        _close_all_but(theirs.fileno())
        # No signal: killed with the executor, it could not end what workers have started.
        _become_child(parent, "rfaas-zygote", 0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # init and batch systems send it to all
        serve(Link(theirs, "the executor"), load(), node, container)
        status = 0
    except KeyboardInterrupt:
        status = 130
    except Exception:  # noqa: BLE001 - nobody is above us, and all workers end with us
        sys.excepthook(*sys.exc_info())  # `traceback` would take 2 ms of a start
    finally:
        os._exit(status)


def serve(
    link: Link, worker_main: WorkerMain, node: SandboxConfig, container: ContainerConfig
) -> None:
    """Start, kill and reap workers until the executor closes the link."""
    from rfaas.native._worker import adopt_orphans

    adopt_orphans()
    gc.disable()  # a collection would touch, and so copy, all that workers share with us
    gc.freeze()
    wake_reader, wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    poller = select.poll()
    poller.register(link.fileno(), select.POLLIN)
    poller.register(wake_reader, select.POLLIN)
    workers: Workers = {}
    found = {name: tuple(one.lacks(node, container)) for name, one in sandbox.LEVELS.items()}
    try:
        link.send(LevelsFound(levels=found, places=cgroups.of_node().places))
        _rehearse()
        while True:
            cgroups.of_node().make_ready()
            poller.poll()
            with suppress(BlockingIOError):
                os.read(wake_reader, 4096)
            _reap(link, workers)
            _obey(link, workers, worker_main, node)
    except PeerLostError:
        pass
    finally:
        for worker in workers.values():
            worker.kill()
        for pid, worker in workers.items():
            worker.reaped(os.waitpid(pid, 0)[1], 0)
        while _end(_strays({})):  # as each ends, its children become ours
            pass
        cgroups.of_node().close()


def _rehearse() -> None:
    """What is found out at first use, of messages by msgspec, is found out once and for all."""
    task = LoadLibrary(ring_bytes=0, cpus=(0,), hot_timeout_ms=0, isolation="none")
    decode(encode(task)[LENGTH.size :])
    encode(LibraryLoaded(functions=("",)))


def _obey(link: Link, workers: Workers, worker_main: WorkerMain, node: SandboxConfig) -> None:
    while (message := link.receive(0.0)) is not None:
        match message:
            case SpawnWorker():
                fd, output_fd = link.take_fds()
                try:
                    worker = _start_worker(message, node, fd, output_fd, worker_main)
                except OSError as error:  # its own lease's loss, and nobody else's
                    link.send(_no_fork(message.id, error))
                except RfaasError as error:
                    refusal = Error(
                        id=message.id, code=error.code, text=error.text, hint=error.hint
                    )
                    link.send(refusal)
                else:
                    workers[worker.pid] = worker
                    group = worker.group.name if worker.group is not None else ""
                    link.send(WorkerSpawned(id=message.id, pid=worker.pid, group=group))
                finally:
                    os.close(fd)
                    os.close(output_fd)
            case ResumeProcess() if message.pid in workers:
                try:
                    workers[message.pid].go_on()
                except OSError as error:
                    text = f"a worker cannot go on: {error.strerror}"
                    link.send(Error(id=message.id, code=SystemCallError.code, text=text))
                else:
                    link.send(ProcessResumed(id=message.id))
            case StopProcess() if message.pid in workers:
                link.send(_stop(message, workers))
            case ResumeProcess() | StopProcess():
                text = "the worker that was to be stopped or to go on is gone"
                link.send(Error(id=message.id, code=SystemCallError.code, text=text))
            case KillWorker() if message.pid in workers:
                workers[message.pid].kill()


def _stop(order: StopProcess, workers: Workers) -> ProcessStopped | Error:
    """Stop a worker that is kept, if all that its client has started is that one process."""
    try:
        if _strays(workers):
            raise SystemCallError("processes of somebody's are left behind on this node")
        stopped, cpu_ticks = workers[order.pid].stop()
    except (OSError, SystemCallError) as error:
        text = error.text if isinstance(error, SystemCallError) else error.strerror
        return Error(id=order.id, code=SystemCallError.code, text=f"cannot stop a worker: {text}")
    return ProcessStopped(id=order.id, stopped=stopped, cpu_ticks=cpu_ticks)


def _no_fork(request_id: int, error: OSError) -> Error:
    return Error(
        id=request_id,
        code=SystemCallError.code,
        text=f"cannot fork a worker: {error.strerror}",
        hint="the node's limit of processes (`ulimit -u`, pids.max) or its memory is used up",
    )


def _reap(link: Link, workers: Workers) -> None:
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None:
            return
        pid = found.si_pid
        worker = workers.get(pid)
        if worker is not None:
            worker.kill()  # before it is reaped: until then its group is surely its own
        _, status, used = os.wait4(pid, 0)
        workers.pop(pid, None)
        for stray in _strays(workers):
            _kill(stray)
        if worker is not None:
            cpu_ns = round((used.ru_utime + used.ru_stime) * 1e9)
            end = worker.reaped(status, cpu_ns)
            link.send(
                WorkerDied(pid=pid, status=end.status, reached=end.reached, cpu_ns=end.cpu_ns)
            )
        cgroups.of_node().clear()


def _start_worker(
    order: SpawnWorker, node: SandboxConfig, fd: int, output_fd: int, worker_main: WorkerMain
) -> sandbox.Confined:
    def run(parent: int, prepare: Callable[[], None]) -> NoReturn:
        """What the new process does."""
        status = 70
        try:
            os.setsid()  # a group of its own, so that what it starts can be killed with it
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.dup2(output_fd, 2)
            carrier = SocketCarrier(socket.socket(fileno=os.dup(fd)), WORKER_FDS_MAX)
            worker_link = Link(carrier, "the executor")
            _close_all_but(worker_link.fileno())
            _become_child(parent, "rfaas-worker", signal.SIGKILL)
            prepare()
            status = worker_main(worker_link)
        except Exception:  # noqa: BLE001 - a worker has nobody above it
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)

    return sandbox.level(order.isolation).start(sandbox.Birth(order, node, fd, run))


def _become_child(parent: int, name: str, death_signal: int) -> None:
    from rfaas.native._worker import die_with_parent

    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # the executor decides, not the terminal
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent(death_signal, name)
    if os.getppid() != parent:
        os._exit(0)  # it died before we asked to be told


def _close_all_but(keep: int) -> None:
    os.dup2(2, 1)  # what functions print must not mix with what we print
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    try:
        others = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:  # no /proc: a bare chroot, hidepid
        others = list(range(3, DESCRIPTORS_MAX))
    for fd in others:
        if fd > 2 and fd != keep:
            with suppress(OSError):
                os.close(fd)


def _strays(workers: Mapping[int, sandbox.Confined]) -> set[int]:
    """What dead workers have left behind: the kernel made it our child."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as children:
            ours = set(map(int, children.read().split()))
    except FileNotFoundError:  # a kernel built without CONFIG_PROC_CHILDREN
        return set()
    # A worker leads a session: an orphan in that of a live one is that worker's business, and so
    # is one in its control group.
    return {
        pid
        for pid in ours.difference(workers)
        if os.getsid(pid) not in workers and not any(one.has(pid) for one in workers.values())
    }


def _end(children: set[int]) -> set[int]:
    """Kill children and reap them; returns those that could be."""
    ended = {pid for pid in children if _kill(pid)}
    for pid in ended:
        os.waitpid(pid, 0)
    return ended


def _kill(pid: int) -> bool:
    """Whether it is killed: what has become another user by set-user-ID is not ours to kill."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False
