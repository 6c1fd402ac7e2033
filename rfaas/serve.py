"""Runs roles in this process until they are told to stop.

The one place that knows more than one role: it forks the zygote before there
is an event loop, sets up signals and logs, and runs the roles side by side.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys

from rfaas import config as configuration
from rfaas.clock import SystemClock
from rfaas.config import Config
from rfaas.control.sockets import path_of
from rfaas.errors import UsageError
from rfaas.launch import zygote
from rfaas.roles import executor, resource_manager

_PRIVATE = {"name": executor.PRIVATE, "resource_manager": "none", "address": "private"}


def run(config: Config, role: str, private_fd: int) -> int:
    """Take on `role` ("resource-manager", "executor" or "all") until SIGINT or SIGTERM.

    `private_fd` is the socket of the one client that a private executor serves, or -1.
    """
    logging.basicConfig(
        level=config.log.level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    private = _private_socket(role, private_fd)
    if private is not None:
        logging.getLogger().setLevel(logging.WARNING)  # its client's terminal is not its log
    nursery = zygote.start() if role != "resource-manager" else None
    asyncio.run(_serve(config, role, nursery, private))
    return 0


def _private_socket(role: str, fd: int) -> socket.socket | None:
    if fd < 0:
        return None
    if role != "executor":
        raise UsageError("--private-fd is for the role executor")
    return socket.socket(fileno=fd)


async def _serve(
    config: Config,
    role: str,
    nursery: tuple[int, socket.socket] | None,
    private: socket.socket | None,
) -> None:
    from msgspec.structs import replace

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    clock = SystemClock()
    roles = []
    manager = config.resource_manager
    if role != "executor":
        configuration.ensure_private_dir(os.path.dirname(path_of(manager.address)))
        roles.append(loop.create_task(resource_manager.run(manager, clock, _ready, stop)))
    if nursery is not None:
        own = config.executor
        if private is not None:
            own = replace(own, **_PRIVATE)
        else:
            configuration.ensure_private_dir(os.path.dirname(path_of(own.address)))
        roles.append(loop.create_task(executor.run(own, clock, _ready, stop, nursery, private)))
    try:
        await asyncio.gather(*roles)
    finally:
        stop.set()  # one that failed takes the other along
        await asyncio.gather(*roles, return_exceptions=True)


def _ready(line: str) -> None:
    print(line, flush=True)
