"""The ends of control links by their addresses: connect and listen, whatever carries them."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from rfaas import addresses
from rfaas.addresses import ANY
from rfaas.control import sockets
from rfaas.control.carrier import SocketAcceptor, SocketCarrier
from rfaas.errors import RfaasError, UnavailableError

if TYPE_CHECKING:
    from rfaas.control.carrier import Acceptor, Carrier


def connect(text: str, device: str = "") -> Carrier:
    """Connect to an address.

    Args:
        device: over RDMA, the device to use; "": the one that the route leads over.

    Raises:
        UnavailableError: nobody listens there.
        ConfigError: it is no address of somebody, or there is no such device.
    """
    address = addresses.reachable(text)
    if address.scheme == "verbs":
        from rfaas.control import rdma

        return rdma.connect(address, device)
    return SocketCarrier(sockets.connect(text))


async def connect_soon(text: str, device: str = "") -> Carrier:
    """The same without blocking the running loop."""
    address = addresses.reachable(text)
    if address.scheme == "verbs":
        from rfaas.control import rdma_aio

        return await rdma_aio.connect_soon(address, device)
    if address.scheme == "unix":
        return SocketCarrier(sockets.connect(text))
    return await _connect_tcp(address)


async def _connect_tcp(address: addresses.Address) -> Carrier:
    import asyncio

    loop = asyncio.get_running_loop()
    fault: RfaasError = UnavailableError(f"nobody answers at {address}")
    for family, there in await sockets.look_up_soon(address):
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


def listen(text: str, device: str = "", *, is_trusted: bool = False) -> Acceptor:
    """Listen at an address; over RDMA, `*` is the address of `device`, "": of the first usable.

    Args:
        is_trusted: who connects is asked who it is, or the network is the site's own affair.

    Raises:
        AddressInUseError, SystemCallError, UnavailableError, ConfigError: it cannot be had.
    """
    address = addresses.parse(text)
    found: Acceptor
    if address.scheme == "unix":
        return SocketAcceptor(sockets.listen(text), text)
    if address.scheme == "verbs":
        from rfaas.control import rdma_aio

        found = rdma_aio.listen(address, device)
        host = addresses.parse(found.address).host
    else:
        sock = sockets.listen(text)
        host, port = sock.getsockname()[:2]
        there = address.at(ANY if address.host == ANY else host, port)
        found = SocketAcceptor(sock, str(there))
    if not is_trusted and not host.startswith("127.") and host != "::1":
        import logging

        logging.getLogger("rfaas.control").warning(
            "whoever reaches %s may ask: links are not authenticated; for trusted networks only\n"
            'hint: control.auth = "key" shuts others out (docs/rdma.md), or "munge"',
            found.address,
        )
    return found
