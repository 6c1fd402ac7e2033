"""Sockets under control links: Unix and TCP, and bytes with descriptors."""

from __future__ import annotations

import array
import errno
import math
import os
import socket
from typing import Any

from rfaas.addresses import ANY, Address, parse, reachable
from rfaas.errors import (
    AddressInUseError,
    ProtocolError,
    RfaasError,
    SystemCallError,
    UnavailableError,
)

FDS_MAX = 8  # descriptors that wait to be taken; of messages from outside none needs more
RECEIVE_BYTES = 64 * 1024
BACKLOG = 1024
CONNECT_TIMEOUT_S = 10.0

KEEP_MAX_S = 32767  # that the kernel takes, tcp(7)
SILENCE_S = 10.0  # of a peer's machine, after which a link to it ends; see `lose_after`


def connect(text: str) -> socket.socket:
    """A blocking socket to the address in `text`; UnavailableError if nobody listens there."""
    address = reachable(text)
    if address.scheme == "unix":
        return _connect(address, socket.AF_UNIX, address.path)
    fault: RfaasError = UnavailableError(f"nobody answers at {address}")
    for family, there in look_up(address):
        try:
            return _connect(address, family, there)
        except UnavailableError as error:
            fault = error
    raise fault


def look_up(
    address: Address, *, to_listen: bool = False, is_numeric: bool = False
) -> list[tuple[int, tuple[Any, ...]]]:
    """What the host of an address may be: a family and what its sockets take, in order.

    Names are looked up, which may take seconds, unless it `is_numeric`.

    Raises:
        UnavailableError: it is no name that anybody knows.
    """
    flags = socket.AI_NUMERICSERV
    flags |= socket.AI_PASSIVE if to_listen else 0
    flags |= socket.AI_NUMERICHOST if is_numeric else 0
    host = None if address.host == ANY else address.host.encode()  # str would be IDNA's: `re`
    try:
        found = socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM, flags=flags)
    except socket.gaierror as error:
        raise UnavailableError(f"no host {address.host} is known: {error.strerror}") from None
    return [(family, there) for family, _, _, _, there in found]


async def look_up_soon(address: Address) -> list[tuple[int, tuple[Any, ...]]]:
    """The same for who connects, without blocking the running loop."""
    import asyncio  # clients and workers have no use for it

    try:
        return look_up(address, is_numeric=True)
    except UnavailableError:  # a name: who knows it may be far
        return await asyncio.get_running_loop().run_in_executor(None, look_up, address)


def _connect(address: Address, family: int, there: str | tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if family != socket.AF_UNIX:
            tune(sock)
            sock.settimeout(CONNECT_TIMEOUT_S)
        sock.connect(there)
        sock.settimeout(None)
    except OSError as error:
        sock.close()
        raise nobody(address, error) from None
    except BaseException:
        sock.close()
        raise
    return sock


def nobody(address: Address, error: OSError) -> UnavailableError:
    """The error for a connection that could not be made."""
    if isinstance(error, TimeoutError):
        return UnavailableError(
            f"nobody answers at {address} within {CONNECT_TIMEOUT_S:g} s",
            hint="is the machine up, and does a firewall let it through?",
        )
    return UnavailableError(f"nobody answers at {address}: {error.strerror}")


def tune(sock: socket.socket) -> None:
    """A TCP socket as links want it: small frames at once, and a peer that vanished found out."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    lose_after(sock, SILENCE_S)


def lose_after(sock: socket.socket, silence_s: float) -> None:
    """End a TCP connection when the peer's machine has been silent for so long.

    A machine that vanished (no power, no cable) sends no end.  The kernels find it out, by
    probes and answers of their own, so that a peer that computes, sleeps in a debugger or
    holds its interpreter's lock is not taken for one that is gone.  Their clocks go by whole
    seconds: less than two cannot be had.  tcp(7)
    """
    whole_s = max(2, math.ceil(silence_s))
    every_s = max(1, whole_s // 3)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, min(every_s, KEEP_MAX_S))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, min(every_s, KEEP_MAX_S))
    # Where there is a user timeout, it counts, and not the number of probes.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, min(1000 * whole_s, 2**31 - 1))


def listen(text: str) -> socket.socket:
    """A non-blocking socket that listens at the address in `text`; a Unix one for its owner only.

    A socket file that nobody listens on any more is replaced.

    Raises:
        AddressInUseError: somebody listens there, or the file is not a socket.
        SystemCallError: the system refuses.
    """
    address = parse(text)
    if address.scheme != "unix":
        return _listen_tcp(address)
    path = address.path
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        try:
            _bind(sock, path)
        except FileExistsError:
            _remove_stale(address, path)
            _bind(sock, path)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise SystemCallError(f"cannot listen at {address}: {error.strerror}") from None
    except BaseException:
        sock.close()
        raise
    return sock


def _listen_tcp(address: Address) -> socket.socket:
    found = look_up(address, to_listen=True)
    # `*`: one socket for both families, where the machine has both.
    family, there = max(found, key=lambda one: one[0] == socket.AF_INET6 and address.host == ANY)
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address.host != ANY))
        sock.bind(there)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise taken(address, error) from None
    return sock


def taken(address: Address, error: OSError) -> RfaasError:
    """The error for an address of a network that cannot be listened at."""
    if error.errno == errno.EADDRINUSE:
        return AddressInUseError(
            f"somebody listens at {address} already",
            hint="stop that process, or give this one another port",
        )
    return SystemCallError(
        f"cannot listen at {address}: {error.strerror}",
        hint=f"is {address.host} an address of this machine? `ip address` lists them"
        if error.errno == errno.EADDRNOTAVAIL
        else "",
    )


def _bind(sock: socket.socket, path: str) -> None:
    mask = os.umask(0o177)
    try:
        sock.bind(path)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:  # bind(2) says so for any existing file
            raise FileExistsError(error.errno, error.strerror) from None
        raise
    finally:
        os.umask(mask)


def _remove_stale(address: Address, path: str) -> None:
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    with probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            if not os.path.isdir(path) and _is_socket(path):
                os.unlink(path)
                return
        except OSError as error:
            raise AddressInUseError(f"cannot use {address}: {error.strerror}") from None
        else:
            raise AddressInUseError(
                f"somebody listens at {address} already",
                hint="stop that process, or give this one another address",
            )
    raise AddressInUseError(
        f"cannot listen at {address}: a file that is no socket stands there",
        hint="move it away, or choose another address",
    )


def _is_socket(path: str) -> bool:
    import stat

    return stat.S_ISSOCK(os.lstat(path).st_mode)


def send(sock: socket.socket, data: bytes | memoryview, fds: tuple[int, ...]) -> int:
    """Send what the socket takes now, `fds` on the first byte; the number of bytes sent."""
    flags = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT
    if not fds:
        return sock.send(data, flags)
    rights = array.array("i", fds)
    return sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], flags)


def receive(
    sock: socket.socket, fds_held: int = 0, fds_max: int = FDS_MAX
) -> tuple[bytes, list[int]]:
    """Bytes that are there, and the descriptors that came with them; b"" at the end.

    Raises:
        ProtocolError: with the `fds_held` that wait to be taken, they are more than `fds_max`.
    """
    space = socket.CMSG_SPACE(fds_max * 4)
    flags = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
    data, ancillary, _, _ = sock.recvmsg(RECEIVE_BYTES, space, flags)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if fds_held + len(fds) > fds_max:
        for fd in fds:
            os.close(fd)
        raise ProtocolError(f"the peer sent more than {fds_max} descriptors that nobody asked for")
    return data, list(fds)
