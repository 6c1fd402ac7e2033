"""What a node lends: cores, with the processor of each, and memory."""

from __future__ import annotations

import logging
import os

from msgspec.structs import replace

from rfaas.config import ExecutorConfig

PRIVATE = "private"  # the name of an executor that serves one client

log = logging.getLogger("rfaas.executor")


def private(config: ExecutorConfig) -> ExecutorConfig:
    """The configuration of an executor that serves one client and grants by itself."""
    return replace(config, name=PRIVATE, resource_manager="none", address=PRIVATE)


def cores_of(config: ExecutorConfig) -> tuple[int, list[int]]:
    """How many cores the node lends, and the processor for each lane, -1 where unpinned."""
    cpus = sorted(os.sched_getaffinity(0))
    if config.name == PRIVATE:
        # Private executors know nothing of each other: each begins elsewhere, or all would pin
        # their first lane to the same processor.  Pinned still, so that a client can keep off it.
        start = os.getpid() % len(cpus)
        cpus = cpus[start:] + cpus[:start]
    if config.cores == "all":
        return len(cpus), cpus
    if config.cores <= len(cpus):
        return config.cores, cpus[len(cpus) - config.cores :]
    log.warning(
        "executor.cores is %d, this process may use %d processors: lanes are not pinned",
        config.cores,
        len(cpus),
    )
    return config.cores, [-1] * config.cores


def partners_of(cpus: list[int]) -> dict[int, int]:
    """For as many of the lent processors as there are: one that is not lent, for an endpoint."""
    spare = sorted(os.sched_getaffinity(0) - set(cpus))
    # Cores are handed out from the last.
    return dict(zip([cpu for cpu in reversed(cpus) if cpu >= 0], reversed(spare), strict=False))


def memory_of(config: ExecutorConfig) -> int:
    """How many bytes of memory the node lends."""
    if config.memory != "all":
        return config.memory
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return memory - memory % (1 << 20)  # whole MiB: a figure that can be asked for
