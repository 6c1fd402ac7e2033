"""Control links over RDMA for roles: listening, and connecting without blocking a loop."""

from __future__ import annotations

import asyncio
import logging
import weakref
from typing import TYPE_CHECKING

from rfaas.addresses import ANY, Address
from rfaas.control import rdma_errors, sockets
from rfaas.control.rdma import CONNECT_TIMEOUT_S, RdmaCarrier, begin, numeric, opened, resolve
from rfaas.errors import RfaasError, UnavailableError
from rfaas.transport import device as devices

if TYPE_CHECKING:
    from rfaas.native._rdma_stream import Listener, Stream

BACKLOG = 128
PROBE_S = 1.0  # between two looks at whether those who say nothing are there

log = logging.getLogger("rfaas.control")


class RdmaAcceptor:
    """Listens at an address of an RDMA device; `carrier.Acceptor`."""

    def __init__(self, listener: Listener, address: str) -> None:
        self.address = address
        self._listener = listener
        self._port = listener.port
        self._is_deaf = False  # its device was taken away, which has been said
        self._carriers: weakref.WeakSet[RdmaCarrier] = weakref.WeakSet()
        self._probing = asyncio.get_running_loop().call_later(PROBE_S, self._probe)

    def fileno(self) -> int:
        return self._listener.fileno()

    def accept(self) -> RdmaCarrier | None:
        while (found := self._listener.accept()) is not None:
            if isinstance(found, str):
                log.warning("refused a connection: %s", rdma_errors.REFUSALS[found])
            elif found.state == "broken":
                log.warning("cannot accept a connection: %s", rdma_errors.of_fault(found.fault))
                found.close()
            else:
                carrier = RdmaCarrier(found, "", self._port)
                self._carriers.add(carrier)
                return carrier
        if self._listener.is_lost and not self._is_deaf:
            self._is_deaf = True
            log.error(
                "the RDMA device of %s was taken away: nobody is heard there until it is back",
                self.address,
            )
        return None

    def close(self) -> None:
        self._probing.cancel()
        self._listener.close()

    def _probe(self) -> None:
        if self._is_deaf:
            self._listen_again()
        for carrier in self._carriers:
            carrier.probe()
        self._probing = asyncio.get_running_loop().call_later(PROBE_S, self._probe)

    def _listen_again(self) -> None:
        try:
            self._listener.again(self._port)
        except rdma_errors.load().StreamFault:
            return  # not back yet, as a rule; it is tried again
        self._is_deaf = False
        log.warning("listening again at %s", self.address)


def listen(address: Address, device: str) -> RdmaAcceptor:
    """Listen at an address, `*` being that of `device`; for the running loop.

    Raises:
        UnavailableError, ConfigError: the device, or RDMA as such, cannot be used.
        AddressInUseError, SystemCallError: the address cannot be had.
    """
    native = rdma_errors.load()
    if address.host == ANY:
        host = devices.choose(device).host
    else:
        host = numeric(sockets.look_up(address, to_listen=True)[0])
    try:
        listener = native.Listener(host, address.port, BACKLOG)
    except native.StreamFault as fault:
        raise rdma_errors.of_listen(fault, address) from None
    return RdmaAcceptor(listener, str(address.at(host, listener.port)))


async def connect_soon(address: Address, device: str) -> RdmaCarrier:
    """The same without blocking the running loop."""
    found = [numeric(one) for one in await sockets.look_up_soon(address)]
    fault: RfaasError = UnavailableError(f"nobody answers at {address}")
    for host in found:
        stream = begin(address, device, host)
        try:
            try:
                await asyncio.wait_for(_opening(stream), CONNECT_TIMEOUT_S)
            except asyncio.TimeoutError:
                pass  # _opened says so
            return opened(stream, address, host)
        except UnavailableError as error:
            stream.close()
            fault = error
        except BaseException:
            stream.close()
            raise
    raise fault


async def _opening(stream: Stream) -> None:
    loop = asyncio.get_running_loop()
    while stream.state == "opening":
        readable = loop.create_future()
        loop.add_reader(stream.fileno(), resolve, readable)
        try:
            await readable
        finally:
            loop.remove_reader(stream.fileno())
        stream.step()
