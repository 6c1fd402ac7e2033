"""Level `container`: the worker runs in an image that the lease names.

The image brings the libraries that the function needs, at least a C library; the worker
itself, `native/inside.c`, is mounted in.  Which engine runs it is the node's choice
(`container.engine`); all give it the same: no network, no capability, nothing to write
to, no devices but those that hold nothing.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rfaas.errors import RfaasError, SystemCallError, UsageError
from rfaas.proto.worker_messages import Lack
from rfaas.sandbox import boxes, cgroups, engines, gpus, keeper

if TYPE_CHECKING:
    from rfaas.config import ContainerConfig, SandboxConfig
    from rfaas.control.link import Link
    from rfaas.proto.worker_messages import Limits, LoadLibrary, SpawnWorker
    from rfaas.sandbox import Birth


class EngineContainer:
    """One container of an engine: see `keeper.Container`."""

    def __init__(self, order: SpawnWorker, group: cgroups.Group | None) -> None:
        self.group = group
        self.limits = keeper.rlimits(order.limits)
        self.gpus = order.gpus
        wanted = order.container
        if wanted is None:
            raise UsageError(
                "level container needs an image",
                hint="name one: lease.image, or --image NAME@sha256:DIGEST",
            )
        if outside := [node for node in gpus.nodes_of(self.gpus) if not node.startswith("/dev/")]:
            raise UsageError(
                f"level container cannot have GPU {outside[0]}: it is not beneath /dev",
                hint="elsewhere it would be made in the image's own tree",
            )
        self._engine = engines.chosen(
            wanted.engine, sriov=bool(wanted.options.get("docker_rdma_sriov"))
        )
        self.what = f"the container ({self._engine.name})"
        self.is_direct = self._engine.is_direct
        self.enters = self._engine.enters
        self.network = engines.has_sriov(self._engine, wanted.options)
        name, folder, self._lock = boxes.make(self._engine.name)
        self._job = engines.Job(
            name=name,
            folder=folder,
            image=wanted.image,
            root=wanted.root,
            program=boxes.program_file(),
            limits=order.limits,
            cpus=order.cpus,
            options=wanted.options,
            gpus=order.gpus,
        )
        self.listener: socket.socket | None = None
        self.channel = str(keeper.CHANNEL_FD)
        try:
            if not self._engine.inherits:
                self.listener = engines.listen(self._job)
                self.channel = engines.socket_inside()
            self._engine.prepare(self._job)
        except OSError as error:
            self.close(orderly=True)
            raise SystemCallError(f"cannot prepare {folder}: {error.strerror}") from None

    def command(self) -> Sequence[str]:
        return self._engine.command(self._job)

    def become(self) -> None:
        gpus.see(self.gpus, alone=False)  # a site's hooks read them: Sarus, NVIDIA's

    def explain(self, status: int, text: str) -> RfaasError:
        program = self.command()[0]
        if keeper.is_missing(status) and text == keeper.cannot_run(program, errno.ENOENT):
            return engines.missing(self._engine, program)
        why = last_word(text) or f"it ended with status {os.waitstatus_to_exitcode(status)}"
        hint = ""
        if "no such file or directory" in why.lower() and engines.PROGRAM in why:
            hint = "does the image have a C library (glibc 2.34 or newer)? the worker needs one"
        elif "hybrid mode" in why:
            hint = "crun takes no hybrid cgroups from a user who is not root: use runc"
        elif "exec format error" in why.lower():
            hint = f"the image is for another architecture than {os.uname().machine}"
        return SystemCallError(f"{self.what} could not be started: {why[:1000]}", hint=hint)

    def close(self, *, orderly: bool) -> None:
        engine = None if orderly else self._engine
        boxes.remove(engine, self._job.name, self._job.folder)
        os.close(self._lock)


def last_word(text: str) -> str:
    """What an engine said last; podman has a program's own words above ": exit status 1"."""
    lines = [line for line in text.splitlines() if line.strip()]
    joined = len(lines) > 1 and lines[-1].startswith(": ")
    return "".join(lines[-2:] if joined else lines[-1:])


class ContainerLevel:
    """See the module's docstring."""

    name = "container"
    trusted = False
    _order: SpawnWorker  # in a keeper: what it was started for
    _group: cgroups.Group | None

    def lacks(self, node: SandboxConfig, container: ContainerConfig) -> list[Lack]:
        boxes.sweep()
        try:
            engines.chosen(container.engine, sriov=container.docker_rdma_sriov)
        except SystemCallError as error:
            return [Lack("engine", error.text, error.hint)]
        return cgroups.lacks()

    def start(self, birth: Birth) -> keeper.Kept:
        def prepare(group: cgroups.Group | None) -> None:
            self._order, self._group = birth.order, group

        wanted = birth.order.container
        engine = engines.table()[wanted.engine] if wanted is not None else None
        return keeper.start(birth, prepare, enters=engine is not None and engine.enters)

    def enter(self, limits: Limits, degrade: Sequence[str] = ()) -> None:
        raise SystemCallError("level container is entered by an engine, not by the worker")

    def keep(self, link: Link, task: LoadLibrary) -> int:
        """In the new process: be its keeper."""
        return keeper.keep(link, task, lambda: EngineContainer(self._order, self._group))


LEVEL = ContainerLevel()
