"""Row 14: whatever floods HTTP, leases are granted and given back beside it."""

from __future__ import annotations

import http.client
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

from rfaas.control import link as links
from rfaas.control.link import Link
from rfaas.proto import messages as m
from rfaas.proto.proof import prove
from tests.harness.processes import until
from tests.web.http import Web

CONNECTIONS = 200
PAIRS = 100
HAMMERS = 4


def pair(link: Link) -> None:
    """A lease, granted and given back."""
    asked = m.RequestLease(client="tester", cores=1, memory_bytes=1 << 20, duration_s=60.0)
    granted = link.ask(asked, m.LeaseGranted)
    proof = prove(granted.secret, link.nonce, granted.lease)
    link.ask(m.ReleaseLease(lease=granted.lease, proof=proof), m.Done)


def test_row_14_slow_loris_and_a_flood_beside_grants(shared: Web, shipped: Path) -> None:
    stop = threading.Event()
    answered: list[int] = []

    def hammer() -> None:
        while not stop.is_set():
            with suppress(OSError, http.client.HTTPException):  # refused, past the bound
                answered.append(shared.ask("/v1/leases?ended=true").status)

    threads = [threading.Thread(target=hammer) for _ in range(HAMMERS)]
    hello = m.Hello(version=m.PROTOCOL_VERSION, role="client", name="tester")
    link = links.connect(shared.site.address(), hello)
    try:
        for thread in threads:
            thread.start()
        until(lambda: answered, "an answer of the flood")
        with ExitStack() as slow:
            socks = []
            for _ in range(CONNECTIONS):
                with suppress(OSError):
                    socks.append(slow.enter_context(shared.socket()))
            for turn in range(PAIRS):
                with suppress(OSError):  # byte by byte, for ever
                    socks[turn % len(socks)].sendall(
                        b"GET / HTTP/1.1\r\nHost: x\r\nA"[turn % 20 :][:1]
                    )
                pair(link)
            with shared.site.session() as session, session.lease(library=shipped) as lease:
                assert bytes(lease.call("echo", b"on")) == b"on"
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        link.close()
    until(lambda: ask_health(shared), "an answer after the flood")


def ask_health(web: Web) -> bool:
    try:
        return web.ask("/healthz", role="").status == 200
    except (OSError, http.client.HTTPException):
        return False
