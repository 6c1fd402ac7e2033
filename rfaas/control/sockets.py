"""Unix sockets under control links: addresses, and bytes with descriptors."""

from __future__ import annotations

import array
import os
import socket

from rfaas.errors import (
    AddressInUseError,
    ConfigError,
    ProtocolError,
    SystemCallError,
    UnavailableError,
)

FDS_MAX = 8  # descriptors in one message; no message needs more than three
RECEIVE_BYTES = 64 * 1024


def path_of(address: str) -> str:
    """The path in a `unix:/path` address."""
    scheme, _, path = address.partition(":")
    if scheme != "unix" or not path.startswith("/"):
        raise ConfigError(f"address {address!r} is not of the form unix:/path")
    return path


def connect(address: str) -> socket.socket:
    """A blocking socket to `address`; UnavailableError if nobody listens there."""
    path = path_of(address)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        raise UnavailableError(f"nobody answers at {address}: {error.strerror}") from None
    return sock


def listen(address: str) -> socket.socket:
    """A non-blocking listening socket at `address`, readable by its owner only.

    A socket file that nobody listens on any more is replaced.

    Raises:
        AddressInUseError: somebody listens there, or the file is not a socket.
    """
    path = path_of(address)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        try:
            _bind(sock, path)
        except FileExistsError:
            _remove_stale(address, path)
            _bind(sock, path)
        sock.listen(1024)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise SystemCallError(f"cannot listen at {address}: {error.strerror}") from None
    except BaseException:
        sock.close()
        raise
    return sock


def _bind(sock: socket.socket, path: str) -> None:
    mask = os.umask(0o177)
    try:
        sock.bind(path)
    except OSError as error:
        if error.errno == 98:  # EADDRINUSE: bind(2) says so for any existing file
            raise FileExistsError(error.errno, error.strerror) from None
        raise
    finally:
        os.umask(mask)


def _remove_stale(address: str, path: str) -> None:
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


def send(sock: socket.socket, data: bytes, fds: tuple[int, ...]) -> int:
    """Send what the socket takes, with `fds` on the first byte; the number of bytes sent."""
    if not fds:
        return sock.send(data, socket.MSG_NOSIGNAL)
    rights = array.array("i", fds)
    return sock.sendmsg(
        [data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], socket.MSG_NOSIGNAL
    )


def receive(sock: socket.socket, fds_held: int = 0) -> tuple[bytes, list[int]]:
    """Receive some bytes and the descriptors that came with them; b"" at the end.

    Raises:
        ProtocolError: with the `fds_held` that wait to be taken, they are more than FDS_MAX.
    """
    space = socket.CMSG_SPACE(FDS_MAX * 4)
    data, ancillary, _, _ = sock.recvmsg(RECEIVE_BYTES, space, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if fds_held + len(fds) > FDS_MAX:
        for fd in fds:
            os.close(fd)
        raise ProtocolError(f"the peer sent more than {FDS_MAX} descriptors that nobody asked for")
    return data, list(fds)
