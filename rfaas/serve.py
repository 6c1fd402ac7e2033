"""Runs roles in this process until they are told to stop.

The one place that knows more than one role.  The zygote is forked before
anything heavy is loaded: it stays small, and while it loads what workers need,
this process loads asyncio and the roles.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from rfaas.errors import UsageError
from rfaas.launch import service

if TYPE_CHECKING:
    import socket

    from rfaas.config import Config
    from rfaas.launch import zygote


def run(config: Config, role: str, private_fd: int) -> int:
    """Take on `role` ("resource-manager", "executor" or "all") until SIGINT or SIGTERM.

    `private_fd` is the socket of the one client that a private executor serves, or -1.
    """
    private = _private_socket(role, private_fd)
    _keep_program()
    from rfaas import failpoints

    failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
    notifier = service.Notifier.take(os.environ)  # before there is anybody to inherit it
    nursery = None
    if role != "resource-manager":
        from rfaas.launch import zygote

        nursery = zygote.start(_load_worker, config.sandbox, config.container)
    _raise_descriptor_limit()  # not for workers: a library may still use select(2)
    import asyncio

    from rfaas.launch import logs

    # A private executor speaks on its client's terminal, which is not its log.
    logs.set_up("warning" if private else config.log.level)
    asyncio.run(_serve(config, role, nursery, private, notifier))
    if private is not None:
        os._exit(0)  # its client waits for it to be gone, not for an interpreter to tidy up
    return 0


def _keep_program() -> None:
    """Have the zipapp's importer (packaging/boot/finder.py) read all that may still be imported."""
    keep = getattr(globals().get("__loader__"), "keep", None)
    if keep is not None:
        keep()


def _raise_descriptor_limit() -> None:
    """A role needs a few descriptors for each link and worker; many soft limits are 1024."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _load_worker() -> zygote.WorkerMain:
    from rfaas.roles import worker

    return worker.run


def _private_socket(role: str, fd: int) -> socket.socket | None:
    if fd < 0:
        return None
    if role != "executor":
        raise UsageError("--private-fd is for the role executor")
    import socket

    # It has no use for TLS, and asyncio does without it: 10 ms of its client's time.
    sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]
    return socket.socket(fileno=fd)


async def _serve(
    config: Config,
    role: str,
    nursery: zygote.Started | None,
    private: socket.socket | None,
    notifier: service.Notifier,
) -> None:
    import asyncio
    import signal

    from rfaas.clock import SystemClock

    awaited = 2 if role == "all" else 1

    def ready(line: str) -> None:
        nonlocal awaited
        awaited -= 1
        if awaited:  # of a role that starts another one itself, that one says what to type next
            line = line.partition("; next: ")[0]
        else:
            notifier.ready(line)
        _say(line)

    def waiting(line: str) -> None:
        # To whoever waits for this node it is there: that its manager is not up yet
        # must not keep a machine from booting.
        if role == "executor":
            notifier.ready(line)

    stop, stop_manager = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def told_to_stop() -> None:
        notifier.stopping()
        (stop if nursery else stop_manager).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told_to_stop)
    clock = SystemClock()
    roles = []
    if role != "executor":
        from rfaas.roles import resource_manager

        manager = config.resource_manager
        _ensure_place(manager.address)
        managing = resource_manager.run(
            manager,
            clock,
            ready,
            stop_manager,
            config.rdma.device,
            config.http,
            config.prices,
            config.control,
        )
        roles.append(loop.create_task(managing))
    if nursery is not None:
        from rfaas.launch import node
        from rfaas.roles import executor

        own = config.executor
        if private is not None:
            own = node.private(own)
        else:
            _ensure_place(own.address)
        serving = executor.run(
            *(own, clock, ready, stop, nursery, private, waiting),
            device=config.rdma.device,
            control=config.control,
            container=config.container,
        )
        task = loop.create_task(serving)
        task.add_done_callback(lambda _: stop_manager.set())  # it tells the manager how it ended
        roles.append(task)
    try:
        await asyncio.gather(*roles)
    finally:
        stop.set()  # one that failed takes the other along
        await asyncio.gather(*roles, return_exceptions=True)


def _ensure_place(address: str) -> None:
    """A Unix socket's folder, for its owner only."""
    from rfaas import addresses
    from rfaas.paths import ensure_private_dir

    if path := addresses.parse(address).path:
        ensure_private_dir(os.path.dirname(path))


def _say(line: str) -> None:
    """Say that a role is ready, with the next command as it is typed here."""
    from rfaas.launch import local

    print(line.replace("; next: rfaas ", f"; next: {local.program()} "), flush=True)
