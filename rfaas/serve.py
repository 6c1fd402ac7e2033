"""Runs roles in this process until they are told to stop.

The one place that knows more than one role.  The zygote is forked before
anything heavy is loaded: it stays small, and while it loads what workers need,
this process loads asyncio and the roles.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
from typing import TYPE_CHECKING

from rfaas import config as configuration
from rfaas.clock import SystemClock
from rfaas.control.sockets import path_of
from rfaas.errors import UsageError
from rfaas.launch import zygote

if TYPE_CHECKING:
    from rfaas.config import Config


def run(config: Config, role: str, private_fd: int) -> int:
    """Take on `role` ("resource-manager", "executor" or "all") until SIGINT or SIGTERM.

    `private_fd` is the socket of the one client that a private executor serves, or -1.
    """
    private = _private_socket(role, private_fd)
    nursery = zygote.start(_load_worker) if role != "resource-manager" else None
    _raise_descriptor_limit()  # not for workers: a library may still use select(2)
    import asyncio
    import logging

    logging.basicConfig(
        # A private executor speaks on its client's terminal, which is not its log.
        level="WARNING" if private else config.log.level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    asyncio.run(_serve(config, role, nursery, private))
    if private is not None:
        os._exit(0)  # its client waits for it to be gone, not for an interpreter to tidy up
    return 0


def _raise_descriptor_limit() -> None:
    """A role needs a few descriptors for each link and worker; many soft limits are 1024."""
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
    # It has no use for TLS, and asyncio does without it: 10 ms of its client's time.
    sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]
    return socket.socket(fileno=fd)


async def _serve(
    config: Config,
    role: str,
    nursery: tuple[int, socket.socket] | None,
    private: socket.socket | None,
) -> None:
    import asyncio
    import signal

    stop, stop_manager = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set if nursery else stop_manager.set)
    clock = SystemClock()
    roles = []
    if role != "executor":
        from rfaas.roles import resource_manager

        manager = config.resource_manager
        configuration.ensure_private_dir(os.path.dirname(path_of(manager.address)))
        ready = _ready if nursery is None else _ready_beside
        roles.append(loop.create_task(resource_manager.run(manager, clock, ready, stop_manager)))
    if nursery is not None:
        from rfaas.roles import executor

        own = config.executor
        if private is not None:
            own = executor.private(own)
        else:
            configuration.ensure_private_dir(os.path.dirname(path_of(own.address)))
        device = config.rdma.device
        serving = executor.run(own, clock, _ready, stop, nursery, private, device)
        task = loop.create_task(serving)
        task.add_done_callback(lambda _: stop_manager.set())  # it tells the manager how it ended
        roles.append(task)
    try:
        await asyncio.gather(*roles)
    finally:
        stop.set()  # one that failed takes the other along
        await asyncio.gather(*roles, return_exceptions=True)


def _ready(line: str) -> None:
    """Say that a role is ready, with the next command as it is typed here."""
    from rfaas.launch import local

    print(line.replace("; next: rfaas ", f"; next: {local.program()} "), flush=True)


def _ready_beside(line: str) -> None:
    """The same for a role that starts another one itself: that one says what to type next."""
    print(line.partition("; next: ")[0], flush=True)
