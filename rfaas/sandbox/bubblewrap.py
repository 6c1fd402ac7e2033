"""Level `bubblewrap`: what `sandbox` holds, by bwrap(1), for sites that trust that more.

The worker sees an empty root with the named libraries, its own processes and the devices
that hold nothing (null, zero, random), all of it read-only, and no network.  It is
`native/inside.c`; its keeper stays outside.  Run by root, bwrap becomes the user nobody
first: not even the owner of its files is root.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rfaas.errors import RfaasError, SystemCallError
from rfaas.proto.worker_messages import Lack
from rfaas.sandbox import cgroups, gpus, inside, keeper, libraries, sandbox

if TYPE_CHECKING:
    from rfaas.config import ContainerConfig, SandboxConfig
    from rfaas.control.link import Link
    from rfaas.proto.worker_messages import Limits, LoadLibrary, SpawnWorker
    from rfaas.sandbox import Birth

NOBODY = 65534
PROGRAM_FD = 4  # a copy of native/inside.c's program: bwrap reads it, so no path is needed
PROGRAM = "/rfaas-inside"
INSTALL = "as root: apt-get install bubblewrap"


class Bubblewrap:
    """One run of bwrap: see `keeper.Container`."""

    what = "bubblewrap"
    channel = str(keeper.CHANNEL_FD)
    listener: socket.socket | None = None
    is_direct = True
    enters = True
    network = False

    def __init__(
        self, order: SpawnWorker, group: cgroups.Group | None, program: str, paths: list[str]
    ) -> None:
        self._bwrap = program
        self._paths = paths
        self.gpus = order.gpus
        self.group = group
        self.limits = keeper.rlimits(order.limits)

    def command(self) -> Sequence[str]:
        """As bwrap(1) describes it; the order matters: later mounts cover earlier ones."""
        command = [self._bwrap, "--unshare-user", "--disable-userns"]
        command += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
        command += ["--unshare-cgroup-try", "--die-with-parent", "--as-pid-1", "--new-session"]
        command += ["--clearenv", "--cap-drop", "ALL", "--hostname", "rfaas"]
        for path in self._paths:
            command += ["--ro-bind", path, path]
        command += ["--proc", "/proc", "--dev", "/dev"]
        for node in gpus.nodes_of(self.gpus):
            command += ["--dev-bind", node, node]
        command += ["--remount-ro", "/dev"]
        command += ["--perms", "0555", "--ro-bind-data", str(PROGRAM_FD), PROGRAM]
        return [*command, "--remount-ro", "/", "--", PROGRAM, self.channel]

    def become(self) -> None:
        fd = os.memfd_create("rfaas-inside", os.MFD_CLOEXEC)
        os.write(fd, inside.program())
        os.lseek(fd, 0, os.SEEK_SET)
        os.dup2(fd, PROGRAM_FD)
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)

    def explain(self, status: int, text: str) -> RfaasError:
        if keeper.is_missing(status):
            return SystemCallError("bwrap is not installed on this node", hint=INSTALL)
        text = text.removeprefix("bwrap: ") or f"it ended with status {status}"
        hint = ""
        if "namespace" in text or "uid map" in text:
            hint = "this node forbids user namespaces; `rfaas doctor` says what allows them"
        return SystemCallError(f"bubblewrap could not start the worker: {text}", hint=hint)

    def close(self, *, orderly: bool) -> None:
        pass


class BubblewrapLevel:
    """See the module's docstring."""

    name = "bubblewrap"
    trusted = False
    _order: SpawnWorker  # in a keeper: what it was started for
    _group: cgroups.Group | None
    _bwrap = "bwrap"
    _paths: list[str]

    def lacks(self, node: SandboxConfig, container: ContainerConfig) -> list[Lack]:
        self._bwrap = shutil.which("bwrap") or ""
        program = inside.program()
        paths, _ = libraries.found(node.libraries.split())
        self._paths = list(dict.fromkeys([inside.interpreter(program), *paths]))
        if not self._bwrap:
            return [Lack("bwrap", "bwrap is not installed", INSTALL)]
        if error := sandbox.try_namespaces(sandbox.NAMESPACES["user"]):
            return [sandbox.lack("user", f"unshare: {error}")]
        return cgroups.lacks()

    def start(self, birth: Birth) -> keeper.Kept:
        def prepare(group: cgroups.Group | None) -> None:
            self._order, self._group = birth.order, group

        return keeper.start(birth, prepare, enters=True)

    def enter(self, limits: Limits, degrade: Sequence[str] = ()) -> None:
        raise SystemCallError("level bubblewrap is entered by bwrap, not by the worker")

    def keep(self, link: Link, task: LoadLibrary) -> int:
        """In the new process: be its keeper."""
        return keeper.keep(
            *(link, task), lambda: Bubblewrap(self._order, self._group, self._bwrap, self._paths)
        )


LEVEL = BubblewrapLevel()
