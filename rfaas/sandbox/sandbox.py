"""Level `sandbox`: a stranger's code, held by the kernel alone.

The worker gets namespaces of its own, an empty read-only root that shows the named
system libraries, no capability, and no system call but those that computing
needs.  Control groups limit all that it starts, as far as they can be written; what is left
of it ends with the init of its process namespace.

    zygote                      init (1)                    worker (2)
    clone into namespaces  ->   a session; enters its groups; waits
    map its user
    a byte                 ->   becomes that user
                                fork                   ->   empty root, no capability, Landlock,
                                waits for the worker        seccomp; its task; limits; the library
    its wait status        <-   writes it, and ends     <-  dies

Works for root, whose workers are the user `NOBODY` outside, and for anybody else,
whose workers are himself outside and nobody inside.  A part that the kernel does not
have is left out only where `sandbox.degrade` names it.
"""

from __future__ import annotations

import errno
import functools
import operator
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from rfaas.errors import RfaasError, SystemCallError
from rfaas.native import _jail
from rfaas.paths import system_text
from rfaas.proto.worker_messages import Lack
from rfaas.sandbox import cgroups, gpus, libraries, stopping
from rfaas.sandbox import limits as rlimits
from rfaas.sandbox.end import End

if TYPE_CHECKING:
    from rfaas.config import ContainerConfig, SandboxConfig
    from rfaas.proto.worker_messages import Gpu, Limits
    from rfaas.sandbox import Birth

NOBODY = 65534  # the user that nobody is, on every Linux
NAMESPACES = {
    "user": _jail.NEWUSER,
    "mount": _jail.NEWNS,
    "pid": _jail.NEWPID,
    "net": _jail.NEWNET,
    "ipc": _jail.NEWIPC,
    "uts": _jail.NEWUTS,
    "time": _jail.NEWTIME,
}
_WELL = "well"
_HINTS = {
    "user": "allow it: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
    "kernel.apparmor_restrict_unprivileged_userns",
    "mount": "does a security module of the system forbid it? see its log: dmesg",
    "cgroup": cgroups.HINT,
    "landlock": "a kernel with CONFIG_SECURITY_LANDLOCK, and landlock among its lsm=",
}


class Jailed:
    """See `sandbox.Confined`; `pid` is the init."""

    def __init__(self, pid: int, status_fd: int, group: cgroups.Group | None) -> None:
        self.pid = pid
        self.group = group
        self._status_fd = status_fd
        self._stopped = 0  # the worker's process id, out here

    def kill(self) -> None:
        """An init takes all of its namespace along; its group goes at one blow, where it can."""
        if self.group is not None:
            self.group.kill()
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def stop(self) -> tuple[int, int]:
        """An init has its worker for a child, and whatever else there is comes to it as well."""
        if not (there := stopping.children(self.pid)):
            raise SystemCallError("it has ended")
        self._stopped = max(there)
        found = stopping.stop(self._stopped)
        if others := stopping.children(self.pid) - {self._stopped}:
            raise SystemCallError(f"its sandbox has {len(others)} processes beside it")
        return found

    def has(self, pid: int) -> bool:
        """Orphans come to its init."""
        return False

    def go_on(self) -> None:
        # Until its init is reaped, which is our child, the number can only be the worker's.
        if not self._stopped:
            return
        if stopping.children(self.pid) != {self._stopped}:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        os.kill(self._stopped, signal.SIGCONT)
        self._stopped = 0

    def reaped(self, status: int, cpu_ns: int) -> End:
        said = os.read(self._status_fd, 4)  # the init is gone: there is a status or the end
        os.close(self._status_fd)
        status = int.from_bytes(said, "little") if len(said) == 4 else status
        if self.group is None:
            return End(status, cpu_ns=cpu_ns)
        end = End(status, self.group.reached(), max(cpu_ns, self.group.cpu_ns()))
        cgroups.of_node().remove(self.group)
        return end


class SandboxLevel:
    """See the module's docstring.  What `lacks` found out holds for all workers."""

    name = "sandbox"
    trusted = False

    def __init__(self) -> None:
        self._namespaces = 0
        self._user = -1
        self._landlock = False
        self._paths: list[str] = []
        self._groups: cgroups.Groups | None = None
        self._failed: RfaasError | None = None  # in a worker: why it could not be shut in

    def lacks(self, node: SandboxConfig, container: ContainerConfig) -> list[Lack]:
        """The parts that are missing, found by doing it all once in a child."""
        self._user = NOBODY if os.geteuid() == 0 else -1
        self._paths, _ = libraries.found(node.libraries.split())
        lacks = []
        self._namespaces = functools.reduce(operator.or_, NAMESPACES.values())
        if try_namespaces(self._namespaces):
            for part, flag in NAMESPACES.items():
                alone = flag if os.geteuid() == 0 or part == "user" else flag | _jail.NEWUSER
                if error := try_namespaces(alone):
                    self._namespaces &= ~flag
                    lacks.append(lack(part, f"unshare: {error}"))
                    if part == "user" and self._user < 0:
                        return lacks  # nothing else can be had without it
        self._landlock = _jail.landlock_abi() > 0
        if not self._landlock:
            lacks.append(lack("landlock", "the kernel has none, or it is switched off"))
        self._groups = cgroups.of_node()
        if why := self._groups.why:
            lacks.append(lack("cgroup", why))
        if why := self._try_all():
            lacks.append(lack("mount", why))
        return lacks

    def start(self, birth: Birth) -> Jailed:
        group = self._groups.make() if self._groups else None
        ready, go = os.pipe()
        status, say = os.pipe()
        pid = birth_fd = -1
        try:
            if group is not None:
                group.limit(birth.order.limits, birth.order.cpus)
                birth_fd = group.birth_fd()
            user = self._user if self._namespaces & _jail.NEWUSER else -1
            pid = _jail.clone(
                self._namespaces,
                ready,
                go,
                say,
                user,
                birth_fd,
                functools.partial(self._enter_group, group),
            )
            if not pid:
                birth.run(1, lambda: self._prepare(birth.order.gpus))
            if self._namespaces & _jail.NEWUSER:
                _map_user(pid, self._user)
            os.write(go, b"\n")
            return Jailed(pid, status, group)
        except OSError as error:
            os.close(status)
            if pid > 0:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            if group is not None:
                group.remove()
            if pid < 0 and error.filename is None:
                raise
            raise SystemCallError(
                f"cannot shut a worker in: {error.filename or ''}: {system_text(error)}"
            ) from None
        finally:
            for fd in (ready, go, say, birth_fd):
                if fd >= 0:
                    os.close(fd)

    def enter(self, limits: Limits, degrade: Sequence[str] = ()) -> None:
        if self._failed is not None:
            raise self._failed
        rlimits.set_all(limits, whole=self._groups is None or bool(self._groups.why))

    def _enter_group(self, group: cgroups.Group | None, born: bool) -> None:
        """In the new init: what it cannot have, its worker says."""
        try:
            if group is not None:
                group.enter(born=born)
        except OSError as error:
            self._failed = SystemCallError(f"cannot limit a worker: {system_text(error)}")

    def _prepare(self, given: Sequence[Gpu] = ()) -> None:
        """In the new worker: all that does not depend on its task."""
        devices = gpus.nodes_of(given)
        try:
            _jail.forget()
            if given:
                gpus.see(given, alone=True)
            if self._namespaces & _jail.NEWUTS:
                socket.sethostname("worker")
            _jail.enter_root(self._paths, devices)
            if self._user >= 0 and not self._namespaces & _jail.NEWUSER:
                _jail.become(self._user)
            _jail.drop()
            if self._landlock:
                _jail.landlock(devices)
            _jail.seccomp(devices=bool(devices))
        except RfaasError as error:
            self._failed = error  # the executor hears it in answer to the task
        except OSError as error:
            self._failed = SystemCallError(f"cannot shut the worker in: {system_text(error)}")

    def _try_all(self) -> str:
        """Why a worker cannot be shut in, or "": where AppArmor hands out empty namespaces, say."""
        ready, go = os.pipe()
        told, tell = os.pipe()
        try:
            text = ""
            user = self._user if self._namespaces & _jail.NEWUSER else -1
            pid = _jail.clone(self._namespaces, ready, go, tell, user)
            if not pid:
                self._prepare()
                os.write(tell, (self._failed.text if self._failed else _WELL).encode())
                os._exit(0)
            try:
                if self._namespaces & _jail.NEWUSER:
                    _map_user(pid, self._user)
                os.write(go, b"\n")
            except OSError:  # no /proc: the child would wait for ever
                os.kill(pid, signal.SIGKILL)
                raise
            finally:
                os.waitpid(pid, 0)
            os.set_blocking(told, False)  # it has ended: what it said is there
            with suppress(BlockingIOError):
                text = os.read(told, 4096)[:-4].decode()  # the init's word on its end comes last
            return "" if text == _WELL else text or "it ends at once"
        except OSError as error:
            return system_text(error)
        finally:
            for fd in (ready, go, told, tell):
                os.close(fd)


def try_namespaces(flags: int) -> str:
    """What the system says against a process in such namespaces, or ""."""
    ready, go = os.pipe()
    try:
        pid = _jail.clone(flags, ready, go, go, -1)
    except OSError as error:
        return system_text(error)
    else:
        os.kill(pid, signal.SIGKILL)  # it waits for us
        os.waitpid(pid, 0)
        return ""
    finally:
        os.close(ready)
        os.close(go)


def _map_user(pid: int, user: int) -> None:
    """Give the new user namespace its one user and group.  Raises OSError."""
    outside = (user, user) if user >= 0 else (os.geteuid(), os.getegid())
    if user < 0:
        _write(f"/proc/{pid}/setgroups", "deny")
    for name, number in zip(("uid_map", "gid_map"), outside, strict=True):
        _write(f"/proc/{pid}/{name}", f"{number} {number} 1")


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


def lack(part: str, why: str) -> Lack:
    """That a part is missing, why, and what helps."""
    return Lack(part, why, _HINTS.get(part, ""))


LEVEL = SandboxLevel()
