"""The program that is the worker inside a container, and how its keeper talks to it.

`native/inside.c` is that program: it takes its task over one socket, so an image needs a C
library and nothing of ours.  The numbers are those of `native/inside.h`.
"""

from __future__ import annotations

import array
import functools
import importlib.util
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from rfaas.errors import InternalError, LibraryError, RfaasError, SystemCallError

if TYPE_CHECKING:
    from rfaas.core.elf import ExportedFunction

MAGIC = 0x31495352
HELLO, LOADED, FAILED, FAILED_LIBRARY, ENDED = range(1, 6)
LIMITS = 8
FILTER, DEVICES, NETWORK = 1, 2, 4
TEXT_MAX = 2048
STEPS = ("confine", "load", "start_lanes")

_TASK = struct.Struct("<4IqQQQ")
_LIMIT = struct.Struct("<IIQ")
_MESSAGE = struct.Struct(f"<Ii3Q{TEXT_MAX}s")
_CREDENTIALS = struct.Struct("3i")  # ucred, unix(7): process, user, group
TASK_BYTES = _TASK.size + LIMITS * _LIMIT.size
MESSAGE_BYTES = _MESSAGE.size
_PT_INTERP = 3
_NAME = "rfaas.native.inside"


class Said(NamedTuple):
    """A message of the program; `pid` is its sender's, as we see it."""

    kind: int
    status: int
    steps_ns: dict[str, int]
    text: str
    pid: int


@functools.cache
def program() -> bytes:
    """The program's file."""
    found = importlib.util.find_spec(_NAME)
    if found is None or found.origin is None:
        raise InternalError(f"{_NAME} was not built", hint="make build")
    data = getattr(found.loader, "get_data", None)
    if data is not None and not os.path.exists(found.origin):  # carried in a zip
        return bytes(data(found.origin))
    with open(found.origin, "rb") as file:
        return file.read()


def interpreter(program: bytes) -> str:
    """The dynamic loader that the program names (PT_INTERP, elf(5)): where it has to be."""
    (offset,) = struct.unpack_from("<Q", program, 32)
    size, count = struct.unpack_from("<HH", program, 54)
    for index in range(count):
        kind, start, length = struct.unpack_from("<I4xQ16xQ", program, offset + index * size)
        if kind == _PT_INTERP:
            return program[start : start + length].rstrip(b"\0").decode()
    raise InternalError(f"{_NAME} names no dynamic loader")


def channel() -> tuple[socket.socket, socket.socket]:
    """The keeper's end and the program's, which is to be its only descriptor above 2."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return ours, theirs


def listener(path: str) -> socket.socket:
    """Where the program connects to, if it cannot inherit a descriptor; `accept` gives the end."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    sock.bind(path)
    os.chmod(path, 0o666)  # it runs as another user; only the container has the directory
    sock.listen(1)
    return sock


def variables(environment: Mapping[str, str]) -> bytes:
    """The worker's environment, as its table has it."""
    return b"".join(f"{name}={value}".encode() + b"\0" for name, value in environment.items())


def table(
    cpus: Sequence[int], functions: Sequence[ExportedFunction], variables: bytes = b""
) -> bytes:
    """What does not fit into the task: processors of lanes, variables, names of functions."""
    names = b"".join(bytes([one.abi]) + one.name.encode() + b"\0" for one in functions)
    return struct.pack(f"<{len(cpus)}i", *cpus) + variables + names


def send_task(  # noqa: PLR0913 - the fields of a task
    sock: socket.socket,
    *,
    lanes: int,
    functions: int,
    hot_timeout_ms: int,
    ring_bytes: int,
    table_bytes: int,
    variables_bytes: int,
    uses_devices: bool,
    uses_network: bool,
    limits: Sequence[tuple[int, int]],
    fds: Sequence[int],
) -> None:
    """Hand the worker its task.

    Args:
        uses_network: whether the container's network is its function's to use.
        limits: (resource, value) for setrlimit(2), at most LIMITS.
        fds: library, rings, accounting page, table; lent.
    """
    filters = FILTER | (DEVICES if uses_devices else 0) | (NETWORK if uses_network else 0)
    sizes = (ring_bytes, table_bytes, variables_bytes)
    head = _TASK.pack(MAGIC, lanes, functions, filters, hot_timeout_ms, *sizes)
    entries = [_LIMIT.pack(resource, 1, value) for resource, value in limits]
    entries += [bytes(_LIMIT.size)] * (LIMITS - len(entries))
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())]
    sock.sendmsg([head + b"".join(entries)], control, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> Said | None:
    """What the program says next; None at its end, or where it makes no sense."""
    try:
        data, control, _, _ = sock.recvmsg(MESSAGE_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size))
    except ConnectionError:
        return None
    if len(data) != MESSAGE_BYTES:
        return None
    kind, status, *ns, text = _MESSAGE.unpack(data)
    pid = 0
    for level, what, value in control:
        if level == socket.SOL_SOCKET and what == socket.SCM_CREDENTIALS:
            pid = _CREDENTIALS.unpack(value[: _CREDENTIALS.size])[0]
    words = text.split(b"\0", 1)[0].decode("utf-8", "replace")
    return Said(kind, status, dict(zip(STEPS, ns, strict=True)), words, pid)


def error_of(said: Said) -> RfaasError:
    """What FAILED and FAILED_LIBRARY mean."""
    if said.kind == FAILED:
        return SystemCallError(said.text)
    lacking = "undefined symbol" in said.text or "cannot open shared object" in said.text
    hint = "link what it needs into it, or use an image that has it" if lacking else ""
    return LibraryError(said.text, hint=hint)
