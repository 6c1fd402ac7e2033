"""Isolation of workers: one file per level, one interface.

A level acts twice.  The zygote has it *start* the worker, in a process that is
its child: by a fork, in namespaces, or through another program.  Then the
worker itself *enters* the level, after its link and descriptors are there and
before a byte of the library is looked at.  What a level cannot hold it
refuses: it is never lowered.  A part of it may be missing only where the
node's configuration says so, and then everybody is told.

Adding one: docs/architecture.md, "add an isolation level".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, NoReturn, Protocol

from rfaas.errors import UsageError
from rfaas.sandbox import bubblewrap, cgroups, container, none, process, sandbox
from rfaas.sandbox.end import End

if TYPE_CHECKING:
    from rfaas.config import ContainerConfig, SandboxConfig
    from rfaas.control.link import Link
    from rfaas.proto.worker_messages import Lack, Limits, LoadLibrary, SpawnWorker


class Birth(NamedTuple):
    """What a level needs to start one worker.

    `run` is what the new process does and never returns from.  It is given the process id of
    its parent, as the process sees it, and what to do once all descriptors but the standard ones
    and the link are closed.  A level that starts another program passes `link_fd` on instead:
    `roles.worker.run` is what has to happen to it in there.
    """

    order: SpawnWorker
    node: SandboxConfig
    link_fd: int
    run: Callable[[int, Callable[[], None]], NoReturn]


class Confined(Protocol):
    """A worker that a level has started, as the zygote sees it."""

    pid: int  # a child of the zygote, in a session of its own; its death is the worker's
    group: cgroups.Group | None  # its control groups, where it has some

    def kill(self) -> None:
        """Kill the worker and all that it started; its death comes as a child's.  Repeatable."""

    def stop(self) -> tuple[int, int]:
        """Stop the worker, which nobody calls any more, as of `stopping.stop`, which it returns.

        Raises:
            SystemCallError: the level cannot, or the worker is not alone.
        """

    def has(self, pid: int) -> bool:
        """Whether an orphan that has come to the zygote is of its making, as far as is known."""

    def go_on(self) -> None:
        """Let one that was stopped run again; nothing where it was not.  OSError: it is gone."""

    def reaped(self, status: int, cpu_ns: int) -> End:
        """`pid` was reaped with this wait status: remove what is left of it, its cgroup too.

        `cpu_ns` is the processor time of it and of what it has waited for.
        """


class Level(Protocol):
    """One level of isolation.

    `trusted`: whether the worker may own what the lease is measured and reached by (its NIC's
    connection, its accounting).  Where it may not, an endpoint process beside it does.
    """

    name: str
    trusted: bool

    def lacks(self, node: SandboxConfig, container: ContainerConfig) -> list[Lack]:
        """In the zygote, once, when it starts: the parts that cannot be had here."""

    def start(self, birth: Birth) -> Confined:
        """In the zygote: start a worker.

        Raises:
            OSError: it cannot be forked.
            SystemCallError: a part of the level cannot be had.
        """

    def enter(self, limits: Limits, degrade: Sequence[str] = ()) -> None:
        """In the worker: confine the calling process for good, before it loads the library.

        `degrade` names the parts that may be missing.

        Raises:
            SystemCallError: another part of the level cannot be had here.
        """


class Kept(Protocol):
    """A level whose workers another program confines (`keeper.py`)."""

    def keep(self, link: Link, task: LoadLibrary) -> int:
        """In the process that `start` forked, instead of `enter`: run the worker in there."""


_ALL: tuple[Level, ...] = (  # the weakest first
    *(none.LEVEL, process.LEVEL, sandbox.LEVEL, bubblewrap.LEVEL, container.LEVEL),
)
LEVELS = {one.name: one for one in _ALL}
KEPT: dict[str, Kept] = {one.name: one for one in (bubblewrap.LEVEL, container.LEVEL)}


def level(name: str) -> Level:
    """The level called `name`."""
    found = LEVELS.get(name)
    if found is None:
        raise UsageError(
            f"isolation level {name!r} is not available on this node",
            hint=f"it has {', '.join(LEVELS)}",
        )
    return found
