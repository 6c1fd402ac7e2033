"""Control groups: limits on all that a worker starts, and one blow that kills it.

Each worker gets a group beneath the one that the executor runs in, for each hierarchy
that may be written: version 2, or 1 on machines that are still hybrid.  Groups that
are not ours are left alone; ours are called rfaas-NAMESPACE-ZYGOTE-START-NUMBER, the first
being the inode of the process namespace that the second is a process of.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import count

from rfaas.errors import SystemCallError
from rfaas.native import _jail
from rfaas.paths import system_text
from rfaas.proto.worker_messages import Lack, LimitReached, Limits, Places

CONTROLLERS = ("memory", "pids", "cpuset")
COUNTER = "cpuacct"  # of version 1, where there is no version 2 to count processor time
BASE_BYTES = 64 << 20  # what a worker itself touches of its own, before the function allocates
STALE_S = 60.0  # a group that old and without a process is in nobody's hands
BASE_PROCESSES = 2  # its init, and its main thread
HINT = "delegate a group to the executor: Delegate=yes in its systemd unit"
_PREFIX = "rfaas-"
_OWN = "/rfaas-executor"  # where an executor moves, to make groups beside itself
_OURS = re.compile(r"rfaas-\d+-\d+-\d+-\d+")
_ESCAPES = (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\"))  # of mountinfo


class Group:
    """The groups of one worker, one in each hierarchy, all of the same name.

    The zygote makes and removes them; the executor knows them by their name, and limits those
    of a worker that waited.
    """

    def __init__(self, places: Places, name: str) -> None:
        self.name = name
        self._places = places
        self._folders = {key: f"{folder}/{name}" for key, folder in places.folders.items()}
        self._made: list[str] = []

    def make(self) -> None:
        """Make them.  Raises OSError."""
        places = self._places
        try:
            for folder in dict.fromkeys(self._folders.values()):
                os.mkdir(folder)
                self._made.append(folder)
            if places.version.get("cpuset") == 1:  # nobody can enter before both are set
                parent = places.folders["cpuset"]
                for key in ("cpuset.cpus", "cpuset.mems"):
                    self._write("cpuset", key, _read(f"{parent}/{key}").strip())
        except OSError:
            self.remove()
            raise

    @property
    def is_there(self) -> bool:
        """Whether all of them still are."""
        return all(map(os.path.isdir, self._made))

    def limit(self, limits: Limits, cpus: Sequence[int], beside: int = 0) -> None:
        """Set the limits; `beside`: how many processes of ours are in there.  Raises OSError."""
        bytes_max = limits.memory_bytes + limits.locked_bytes + BASE_BYTES
        if limits.memory_bytes and "memory" in self._folders:
            if self._places.version["memory"] == 1:
                self._write("memory", "memory.limit_in_bytes", bytes_max)
                with suppress(OSError):  # no accounting of swap
                    self._write("memory", "memory.memsw.limit_in_bytes", bytes_max)
            else:
                self._write("memory", "memory.max", bytes_max)
                with suppress(OSError):
                    self._write("memory", "memory.swap.max", 0)
                with suppress(OSError):  # before Linux 4.19; who is left would wait for the dead
                    self._write("memory", "memory.oom.group", 1)
        if limits.processes and "pids" in self._folders:
            processes_max = limits.processes + limits.lanes + BASE_PROCESSES + beside
            self._write("pids", "pids.max", processes_max)
        if cpus and min(cpus) >= 0 and "cpuset" in self._folders:
            self._write("cpuset", "cpuset.cpus", ",".join(map(str, sorted(cpus))))

    def join(self, pid: int) -> None:
        """Put a process in; after a pause the kernel takes 7 to 40 ms for it.  Raises OSError."""
        for folder in self._made:
            _write(f"{folder}/cgroup.procs", pid)

    def fork(self) -> tuple[int, bool]:
        """os.fork(), and whether the child was born in the group of version 2; it has to `enter`.

        Raises OSError where it cannot be forked.
        """
        fd = self.birth_fd()
        try:
            return (_jail.fork_into(fd), True) if fd >= 0 else (os.fork(), False)
        except OSError:  # before Linux 5.7, or another libc; if no process can be had, once more
            return os.fork(), False
        finally:
            if fd >= 0:
                os.close(fd)

    def birth_fd(self) -> int:
        """A descriptor of the group of version 2 to be born in, the caller's; -1: there is none."""
        if not (folder := self._folders.get("kill")):
            return -1
        return os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def enter(self, *, born: bool) -> None:
        """Put the calling process in, which has one thread.  Raises OSError.

        A thread that moves itself needs nobody to hold still: what makes `join` wait for all
        processors is that no other one may fork meanwhile.

        Args:
            born: whether it was born in the group of version 2.
        """
        for folder in self._made:
            if folder != self._folders.get("kill"):
                _write(f"{folder}/tasks", 0)
            elif not born:
                _write(f"{folder}/cgroup.procs", 0)

    def processes(self) -> set[int]:
        """All that is in them."""
        try:
            return set(map(int, _read(f"{self._made[0]}/cgroup.procs").split()))
        except (OSError, IndexError):
            return set()

    def kill(self) -> None:
        """Kill all that is in them."""
        best = [self._folders[key] for key in ("kill", "pids") if key in self._folders]
        any(_kill(folder) for folder in dict.fromkeys([*best, *self._made]))

    def reached(self) -> LimitReached:
        """Which limit its processes ran into, if any."""
        if folder := self._folders.get("memory"):
            file = "memory.oom_control" if self._places.version["memory"] == 1 else "memory.events"
            if _counter(f"{folder}/{file}", "oom_kill"):
                return "memory"
        folder = self._folders.get("pids")
        if folder and _counter(f"{folder}/pids.events", "max"):
            return "processes"
        return ""

    @property
    def cpu_file(self) -> str:
        """Where the processor time of all that were in them stands, for `cpu_ns`; or ""."""
        if folder := self._folders.get("kill"):
            return f"{folder}/cpu.stat"
        folder = self._folders.get(COUNTER)
        return f"{folder}/cpuacct.usage" if folder else ""

    def cpu_ns(self) -> int:
        """That time; 0 where it is not counted."""
        try:
            return cpu_ns(_read(self.cpu_file).encode()) if self.cpu_file else 0
        except OSError:
            return 0

    def remove(self) -> bool:
        """Remove them; whether none is left that has a process, to be removed later."""
        left = []
        for folder in self._made:
            try:
                os.rmdir(folder)
            except OSError as error:
                left += [folder] if error.errno == errno.EBUSY else []
        self._made = left
        return not left

    def _write(self, controller: str, key: str, value: object) -> None:
        _write(f"{self._folders[controller]}/{key}", value)


class Groups:
    """The groups of a node's workers; made by the zygote, whose number is in their names."""

    def __init__(self) -> None:
        self.places, self.why = find()
        self._name = ""
        try:
            self._name = name_of(os.getpid())
        except OSError as error:  # no /proc
            self.places = Places({}, {})
            self.why = self.why or f"they cannot be named: {system_text(error)}"
        self._numbers = count(1)
        self._leaving: list[Group] = []
        self._ready: Group | None = None  # made ahead of demand: it takes half a millisecond
        sweep(self.places)

    def make(self) -> Group | None:
        """A new group, or None where there can be none."""
        group, self._ready = self._ready, None
        if group is not None and not group.is_there:  # swept from another process namespace
            group.remove()
            group = None
        if group is None and self.places.folders:
            group = Group(self.places, f"{self._name}{next(self._numbers)}")
            group.make()
        return group

    def make_ready(self) -> None:
        """Have one ready for the next `make`, which tells why there is none."""
        with suppress(OSError):
            self._ready = self.make()

    def limited(self, limits: Limits, cpus: Sequence[int], beside: int = 0) -> Group | None:
        """The same, with its limits, of `Group.limit`.

        Raises:
            SystemCallError: none can be made, though some could.
        """
        group = None
        try:
            group = self.make()
            if group is not None:
                group.limit(limits, cpus, beside)
        except OSError as error:
            if group is not None:
                group.remove()
            raise SystemCallError(f"cannot limit a worker: {system_text(error)}") from None
        return group

    def remove(self, group: Group) -> None:
        """Remove the group of a worker that is gone: now, or once what it started is gone, too."""
        self._leaving.append(group)
        self.clear()

    def close(self) -> None:
        """Remove what can be."""
        if self._ready is not None:
            self.remove(self._ready)
        self.clear()

    def clear(self) -> None:
        """A process has ended: remove what is empty by now."""
        self._leaving = [group for group in self._leaving if not group.remove()]


@functools.cache
def of_node() -> Groups:
    """Those of this zygote, whatever the levels of its workers."""
    return Groups()


def cpu_ns(text: bytes) -> int:
    """Processor time, as cpu.stat (version 2) or cpuacct.usage (version 1) has it."""
    words = text.split()
    if words[:1] == [b"usage_usec"]:
        return int(words[1]) * 1000
    return int(words[0]) if words and words[0].isdigit() else 0


def lacks() -> list[Lack]:
    """What of them this node cannot give its workers."""
    why = of_node().why
    return [Lack("cgroup", why, HINT)] if why else []


def find() -> tuple[Places, str]:
    """Where this process may make groups, and why not all of it is there, or ""."""
    version: dict[str, int] = {}
    folders: dict[str, str] = {}
    why = ""
    try:
        own = _own_groups()
        mounts = _mounts()
    except OSError as error:
        return Places({}, {}), f"control groups cannot be found: {system_text(error)}"
    for key, inside in own.items():
        wanted = [name for name in (*CONTROLLERS, COUNTER) if name in key.split(",")]
        if (mount := mounts.get(key)) is None or (key and not wanted):
            continue
        folder = _folder(key, inside, *mount)
        if not folder:
            continue
        try:
            if not key:
                wanted = _enable(folder)
            _try(folder)
        except OSError as error:
            why = why or f"{folder}: {system_text(error)}"
            continue
        if not key and os.path.exists(f"{folder}/cgroup.procs"):
            folders["kill"] = folder  # cgroup.kill is not in the root group, but in its children
        for name in wanted:
            version[name], folders[name] = 1 if key else 2, folder
    if "kill" in folders:
        folders.pop(COUNTER, None)
    missing = [name for name in CONTROLLERS if name not in folders]
    if missing and not why:
        why = f"no hierarchy of {', '.join(missing)} is mounted for writing"
    return Places(version, folders), why if missing else ""


def beside(name: str) -> tuple[str, list[str]]:
    """Where groups lie that an engine makes of its own: beneath the executor's, as ours do.

    Returns the path that runc makes `name`'s from (config-linux.md, "Cgroups Path"), and the
    folders that they then are, in each hierarchy.  Raises OSError where that cannot be known.
    """
    own, mounts = _own_groups(), _mounts()
    found = [_folder(key, path, *mounts[key]) for key, path in own.items() if key in mounts]
    folders = [f"{folder}/{name}" for folder in found if folder]
    if set(own) == {""} and folders:  # runc takes the folder above, for another one
        return folders[0].removeprefix(mounts[""][1]), folders
    return name, folders  # beneath that of who runs it: another one in each hierarchy


def _folder(key: str, path: str, root: str, point: str) -> str:
    """Where a group of a hierarchy is mounted; of version 2, what an executor moved out of."""
    path = path if key else path.removesuffix(_OWN)
    if not f"{path}/".startswith(f"{root.rstrip('/')}/"):
        return ""  # it is outside of what is mounted here
    return point + path[len(root.rstrip("/")) :].rstrip("/")


def name_of(zygote: int) -> str:
    """How the names of a running zygote's groups begin.  Raises OSError where it has gone."""
    # Numbers of namespaces and processes are used again; 22: when it started, proc_pid_stat(5).
    started = _read(f"/proc/{zygote}/stat").rpartition(")")[2].split()[22 - 3]
    return f"{_PREFIX}{os.stat('/proc/self/ns/pid').st_ino}-{zygote}-{started}-"


def sweep(places: Places, name: str = "") -> bool:
    """Remove empty groups of ours: those whose name begins so, or by default all that are old and
    whose zygote is not known to live.

    Returns whether one is left that is not empty yet; what is in one of that name is killed.
    """
    busy = False
    for folder in set(places.folders.values()):
        with suppress(OSError):
            for found in os.listdir(folder):
                if not _OURS.fullmatch(found) or not found.startswith(name):
                    continue
                path = f"{folder}/{found}"
                try:
                    old = time.time() - os.stat(path).st_ctime > STALE_S
                    if name or (old and not _has_zygote(found)):
                        os.rmdir(path)
                except OSError as error:
                    if error.errno == errno.EBUSY:
                        busy = True
                        if name:
                            _kill(path)
    return busy


def _has_zygote(name: str) -> bool:
    """Whether the zygote of a group of that name runs, in our process namespace."""
    try:
        return name.startswith(name_of(int(name.split("-")[2])))
    except OSError:
        return False


def _kill(folder: str) -> bool:
    """Kill all that is in a group of ours; whether the kernel did it, at one blow."""
    with suppress(OSError):
        _write(f"{folder}/cgroup.kill", 1)
        return True
    # Version 1, or before Linux 5.14.
    with suppress(OSError):  # or what is born meanwhile would live
        _write(f"{folder}/pids.max", 0)
    with suppress(OSError):
        for pid in set(map(int, _read(f"{folder}/cgroup.procs").split())) - {0}:
            # 0: one outside of our process namespace; another user by set-user-ID
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
    return False


def _own_groups() -> dict[str, str]:
    """Of each hierarchy, by its controllers ("" is version 2), the group of this process."""
    lines = _read("/proc/self/cgroup").splitlines()
    return {key: path for _, key, path in (line.split(":", 2) for line in lines)}


def _mounts() -> dict[str, tuple[str, str]]:
    """The same hierarchies: which of their groups is mounted, and where."""
    found: dict[str, tuple[str, str]] = {}
    for line in _read("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        root, point = before.split(" ")[3:5]
        for escape, character in _ESCAPES:
            point = point.replace(escape, character)
        if kind == "cgroup2":
            found[""] = (root, point)
        elif kind == "cgroup":
            words = options.split(" ")[-1].split(",")
            for key in _own_groups():
                if key and set(key.split(",")) <= set(words):
                    found[key] = (root, point)
    return found


def _enable(folder: str) -> list[str]:
    """Hand controllers of version 2 down to the groups in `folder`; those that are now there.

    Only a group without processes may do so: where the only ones are this program's, they
    move into a group of their own.
    """
    there = _read(f"{folder}/cgroup.controllers").split()
    wanted = [name for name in CONTROLLERS if name in there]
    missing = set(wanted).difference(_read(f"{folder}/cgroup.subtree_control").split())
    if missing:
        text = " ".join(f"+{name}" for name in sorted(missing))
        try:
            _write(f"{folder}/cgroup.subtree_control", text)
        except OSError as error:
            ours = {os.getpid(), os.getppid()}
            inside = {int(pid) for pid in _read(f"{folder}/cgroup.procs").split()}
            if error.errno != errno.EBUSY or not inside or inside - ours:
                raise
            own = folder + _OWN
            with suppress(FileExistsError):
                os.mkdir(own)
            for pid in inside:
                _write(f"{own}/cgroup.procs", pid)
            _write(f"{folder}/cgroup.subtree_control", text)
    return wanted


def _try(folder: str) -> None:
    """Raises OSError where no group can be made in `folder`."""
    name = f"{folder}/{name_of(os.getpid())}0"
    os.mkdir(name)
    os.rmdir(name)


def _counter(path: str, name: str) -> int:
    try:
        lines = _read(path).splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[0] == name), 0)


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _write(path: str, value: object) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)
