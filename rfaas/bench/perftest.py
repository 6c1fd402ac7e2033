"""The outside reference for calls over RDMA: perftest's ib_write_lat and ib_write_bw.

Run between the two devices of a lease, both here, where perftest is installed.
They know nothing of us: no immediate, no function, no lease.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from itertools import pairwise
from math import isfinite
from typing import TYPE_CHECKING

from rfaas.diagnose.devices import find_devices

if TYPE_CHECKING:
    from rfaas.client import Lease

PATIENCE_S = 15.0
PORTS = 18600  # of librdmacm, from here on; perftest cannot take a free one by itself
TRIES_S = 0.1  # between two tries to reach a server that is about to listen


def latency_ns(lease: Lease, size: int) -> dict[str, float] | None:
    """One way, as ib_write_lat counts it: min and median; None where it cannot be run."""
    row = _run("ib_write_lat", lease, size, 1000)
    return None if row is None else {"min": row[2] * 1e3, "median": row[4] * 1e3}


def bytes_per_s(lease: Lease, size: int) -> float | None:
    """The average of ib_write_bw; None where it cannot be run."""
    row = _run("ib_write_bw", lease, size, max(50, min(1000, (64 << 20) // size)))
    return None if row is None else row[3] * (1 << 20)  # its MB are 2^20 bytes


def _run(tool: str, lease: Lease, size: int, count: int) -> list[float] | None:
    """The numbers of the one line that it prints."""
    from rfaas.bench.verbs import source_of

    server = lease.endpoint.host if lease.endpoint is not None else ""
    source = source_of(lease)
    ends = [_device_of(server), _device_of(source)]
    if shutil.which(tool) is None or not all(ends):
        return None
    port = str(PORTS + os.getpid() % 1000)
    options = ["-R", "-F", "-s", str(size), "-n", str(count), "-p", port]
    # Without its own address, librdmacm may find a way that never leaves the server's device.
    client = [tool, *options, "-d", ends[1], f"--source_ip={source}", server]
    give_up_at = time.monotonic() + PATIENCE_S
    # The server gets the worker's processor, the client the one that we are pinned to.
    ours = os.sched_getaffinity(0)
    if lease.cpus[0] >= 0:
        os.sched_setaffinity(0, {lease.cpus[0]})
    try:
        started = subprocess.Popen(
            [tool, *options, "-d", ends[0]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    finally:
        os.sched_setaffinity(0, ours)
    with started as listening:
        try:
            while listening.poll() is None and time.monotonic() < give_up_at:
                done = subprocess.run(
                    client, capture_output=True, text=True, timeout=PATIENCE_S, check=False
                )
                if done.returncode == 0:
                    return _row(done.stdout)
                time.sleep(TRIES_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            listening.kill()
    return None


def _row(text: str) -> list[float] | None:
    lines = text.splitlines()
    for heading, line in pairwise(lines):
        if heading.lstrip().startswith("#bytes"):
            numbers = [float(word) for word in line.split()]
            return numbers if all(map(isfinite, numbers)) else None  # its clock may fail it
    return None


def _device_of(host: str) -> str:
    """The RDMA device of this machine with that address, or ""."""
    for device in find_devices(with_limits=False):
        if any(host in port.addresses for port in device.ports):
            return device.name
    return ""
