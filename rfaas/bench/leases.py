"""`rfaas bench leases`: grants a second, by the ledger alone and by a real resource manager.

The manager is a process of its own with a store in a new directory, durable as configured by
default (SQLite, synchronous = full, group commit).  Nodes are links that join and beat as
executors do and start no workers; each client is a link that requests a lease and releases it,
again and again.  A pair is one of each, answered.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
import time
from array import array
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from rfaas.control.aio import AsyncLink, connect
from rfaas.core.lease import Ask
from rfaas.core.ledger import Ledger
from rfaas.errors import ProtocolError, UnavailableError
from rfaas.launch import local
from rfaas.proto import messages as m
from rfaas.proto.proof import prove

LEDGER_NODES = (10, 100, 1000, 10_000)
NODE_CORES = 64
GRANTS_MAX = 200_000  # per row of the ledger's table
ROUNDS = 3  # of which the best counts: other programs only ever add
READY_S = 20.0
MEMORY_BYTES = 1 << 30


def ledger(nodes: Sequence[int] = LEDGER_NODES) -> dict[str, object]:
    """Grants a second of the ledger alone, by the number of nodes."""
    rows = [max((_ledger_row(count) for _ in range(ROUNDS)), key=_rate) for count in nodes]
    return {"benchmark": "ledger", "node_cores": NODE_CORES, "nodes": rows}


def _rate(row: dict[str, float]) -> float:
    return row["grants_per_s"]


def _ledger_row(nodes: int) -> dict[str, float]:
    """Fill all cores one by one, free half of them anywhere, fill those again."""
    book = Ledger(1e9, 1, 86400.0)
    for number in range(nodes):
        book.join(f"n{number}", "unix:/n", "1" * 32, NODE_CORES, 1 << 40, ("process",), (), 0.0)
    count = min(nodes * NODE_CORES, GRANTS_MAX)
    ids = [f"{number:032x}" for number in range(2 * count)]
    first, freed, again = ids[:count], ids[:count:2], ids[count : count + (count + 1) // 2]
    filled_s = _timed(lambda: [book.ask(_ask(lease), 0.0) for lease in first])
    released_s = _timed(lambda: [book.end(lease, "released", 1.0) for lease in freed])
    scattered_s = _timed(lambda: [book.ask(_ask(lease), 1.0) for lease in again])
    return {
        "nodes": nodes,
        "grants": count,
        "grants_per_s": round(count / filled_s),
        "grant_ns": round(1e9 * filled_s / count),
        "scattered_grants_per_s": round(len(again) / scattered_s),
        "ends_per_s": round(len(freed) / released_s),
    }


def _ask(lease: str) -> Ask:
    return Ask(
        lease=lease,
        client="bench@here:1",
        account="bench@here",
        cores=1,
        memory_bytes=MEMORY_BYTES,
        duration_s=60.0,
        isolation="process",
    )


def _timed(work: Callable[[], object]) -> float:
    """Seconds of the processor: nothing waits here, and other programs are none of it."""
    start = time.process_time()
    work()
    return time.process_time() - start


def manager(clients: int, nodes: int, pairs: int) -> dict[str, object]:
    """Pairs a second and their latencies, with so many clients at once."""
    with tempfile.TemporaryDirectory(prefix="rfaas-bench-") as path:
        address = f"unix:{path}/rm.sock"
        command = local.command(
            "serve",
            "--role",
            "resource-manager",
            "--set",
            f"resource_manager.address={address}",
            "--set",
            f"resource_manager.store={path}/store.sqlite",
            "--set",
            "resource_manager.synchronous=full",
        )
        with (
            open(f"{path}/log", "wb") as log,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, close_fds=True) as child,
        ):
            try:
                assert child.stdout is not None
                if b"ready" not in child.stdout.readline():
                    log.flush()
                    with open(f"{path}/log", errors="replace") as said:
                        raise UnavailableError(f"no resource manager came up: {said.read(2000)}")
                return asyncio.run(_load(address, clients, nodes, pairs))
            finally:
                child.terminate()


async def _load(address: str, clients: int, nodes: int, pairs: int) -> dict[str, object]:
    joined = [await _node(address, number, clients) for number in range(nodes)]
    beating = asyncio.create_task(_beat(joined))
    hello = m.Hello(version=m.PROTOCOL_VERSION, role="client", name="bench")
    links = [await connect(address, hello) for _ in range(clients)]
    each = max(1, pairs // clients)
    idle = array("d")
    await _pairs(links[0], 50, array("d"), array("d"))  # warm
    await _pairs(links[0], 200, idle, array("d"))
    grants, whole = array("d"), array("d")
    start = time.perf_counter()
    await asyncio.gather(*(_pairs(link, each, grants, whole) for link in links))
    elapsed_s = time.perf_counter() - start
    beating.cancel()
    for link, drain in joined:
        drain.cancel()
        await link.close()
    for link in links:
        await link.close()
    return {
        "benchmark": "leases",
        "clients": clients,
        "nodes": nodes,
        "pairs": each * clients,
        "pairs_per_s": round(each * clients / elapsed_s),
        "p50_ms": _quantile(grants, 0.5),
        "p99_ms": _quantile(grants, 0.99),
        "pair_p99_ms": _quantile(whole, 0.99),
        "idle_grant_ms": _quantile(idle, 0.5),
        "idle_grant_p99_ms": _quantile(idle, 0.99),
    }


async def _node(address: str, number: int, cores: int) -> tuple[AsyncLink, asyncio.Task[None]]:
    """A node with a core for each client, and the task that reads what it is told."""
    hello = m.Hello(version=m.PROTOCOL_VERSION, role="executor", name=f"node{number}")
    link = await connect(address, hello)
    await link.request(
        m.JoinNode(
            node=f"node{number}",
            address=f"unix:/node{number}",
            incarnation=f"{number + 1:032x}",
            cores=cores,
            memory_bytes=cores * MEMORY_BYTES,
            isolation=("process",),
        )
    )

    async def drain() -> None:
        while await link.receive() is not None:
            pass

    return link, asyncio.create_task(drain())


async def _beat(joined: Sequence[tuple[AsyncLink, asyncio.Task[None]]]) -> None:
    while True:
        await asyncio.sleep(0.5)
        for number, (link, _) in enumerate(joined):
            link.send(m.Beat(id=1, node=f"node{number}"))


async def _pairs(link: AsyncLink, count: int, grants: array[float], whole: array[float]) -> None:
    """Request and release, `count` times; seconds of each grant, and of each pair."""
    wanted = m.RequestLease(
        isolation="process",
        client=f"bench@{os.uname().nodename}:1"[:255],
        cores=1,
        memory_bytes=MEMORY_BYTES,
        duration_s=60.0,
    )
    now = time.perf_counter
    for number in range(count):
        before = now()
        link.send(replace(wanted, id=2 * number + 1))
        granted = await link.receive()
        after = now()
        if not isinstance(granted, m.LeaseGranted):
            raise ProtocolError(f"{link.peer} answered {granted} to RequestLease")
        proof = prove(granted.secret, link.nonce, granted.lease)
        link.send(m.ReleaseLease(id=2 * number + 2, lease=granted.lease, proof=proof))
        released = await link.receive()
        if not isinstance(released, m.Done):
            raise ProtocolError(f"{link.peer} answered {released} to ReleaseLease")
        grants.append(after - before)
        whole.append(now() - before)


def _quantile(seconds: Sequence[float], share: float) -> float:
    ranked = sorted(seconds)
    return round(1e3 * ranked[min(len(ranked) - 1, int(len(ranked) * share))], 3)
