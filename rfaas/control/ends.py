"""The ends of control links by their addresses: connect and listen, whatever carries them."""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING

from rfaas import addresses
from rfaas.addresses import ANY
from rfaas.control import sockets
from rfaas.control.carrier import SocketAcceptor, SocketCarrier
from rfaas.errors import RfaasError, UnavailableError

if TYPE_CHECKING:
    from rfaas.control.carrier import Acceptor, Carrier

log = logging.getLogger("rfaas.control")


async def connect_soon(text: str) -> Carrier:
    """Connect to an address without blocking the running loop.

    Raises:
        UnavailableError: nobody listens there.
    """
    address = addresses.reachable(text)
    if address.scheme == "unix":
        return SocketCarrier(sockets.connect(text))
    return await _connect_tcp(address)


async def _connect_tcp(address: addresses.Address) -> Carrier:
    import asyncio

    loop = asyncio.get_running_loop()
    try:
        found = sockets.look_up(address, is_numeric=True)
    except UnavailableError:  # a name: who knows it may be far
        found = await loop.run_in_executor(None, sockets.look_up, address)
    fault: RfaasError = UnavailableError(f"nobody answers at {address}")
    for family, there in found:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.setblocking(False)
            sockets.tune(sock)
            await asyncio.wait_for(loop.sock_connect(sock, there), sockets.CONNECT_TIMEOUT_S)
            return SocketCarrier(sock)
        except asyncio.TimeoutError:
            sock.close()
            fault = sockets.nobody(address, TimeoutError())
        except OSError as error:
            sock.close()
            fault = sockets.nobody(address, error)
        except BaseException:
            sock.close()
            raise
    raise fault


def listen(text: str) -> Acceptor:
    """Listen at an address.

    Raises:
        AddressInUseError, SystemCallError: it cannot be had.
    """
    address = addresses.parse(text)
    sock = sockets.listen(text)
    if address.scheme == "unix":
        return SocketAcceptor(sock, text)
    host, port = sock.getsockname()[:2]
    if not host.startswith("127.") and host != "::1":
        log.warning(
            "whoever reaches %s may ask: links are not authenticated; for trusted networks only",
            address.at(address.host, port),
        )
    return SocketAcceptor(sock, str(address.at(ANY if address.host == ANY else host, port)))
