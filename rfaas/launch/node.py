"""What a node lends: cores, with the processor of each, memory and GPUs."""

from __future__ import annotations

import logging
import os

from msgspec.structs import replace

from rfaas.config import ExecutorConfig
from rfaas.core.topology import Topology, lent
from rfaas.diagnose import gpus, processors
from rfaas.proto.worker_messages import Gpu

PRIVATE = "private"  # the name of an executor that serves one client

log = logging.getLogger("rfaas.executor")


def private(config: ExecutorConfig) -> ExecutorConfig:
    """The configuration of an executor that serves one client and grants by itself."""
    return replace(config, name=PRIVATE, resource_manager="none", address=PRIVATE)


def cores_of(config: ExecutorConfig, device: str = "") -> Topology:
    """The processors that the node lends, one for each core; -1 where its lane is not pinned.

    Args:
        device: the RDMA device that workers listen on; "": the first that can be used.
    """
    cpus = sorted(os.sched_getaffinity(0))
    private = config.name == PRIVATE
    if private:
        # Private executors know nothing of each other: each begins elsewhere, or all would pin
        # their first lane to the same processor.  Pinned still, so that a client can keep off it.
        start = os.getpid() % len(cpus)
        cpus = cpus[start:] + cpus[:start]
    cores = len(cpus) if config.cores == "all" else config.cores
    if cores > len(cpus):
        log.warning(
            "executor.cores is %d, this process may use %d processors: lanes are not pinned",
            cores,
            len(cpus),
        )
        return Topology([-1] * cores)
    # Nor do private ones prefer the NIC's node: many would begin with the same processor of it.
    found = lent(cores, cpus, processors.find(cpus, None if private else device))
    if found.text:
        log.info("lends processors: %s", found.text)
    return found


def partners_of(topology: Topology) -> dict[int, int]:
    """For as many of the lent processors as there are: one that is not lent, for an endpoint."""
    return topology.partners(os.sched_getaffinity(0) - set(topology.cpus))


def memory_of(config: ExecutorConfig) -> int:
    """How many bytes of memory the node lends."""
    if config.memory != "all":
        return config.memory
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return memory - memory % (1 << 20)  # whole MiB: a figure that can be asked for


def windows_of(config: ExecutorConfig) -> int:
    """How many bytes the windows of leases over RDMA may have together."""
    return memory_of(config) if config.windows_max == "all" else config.windows_max


def gpus_of(config: ExecutorConfig) -> list[Gpu]:
    """The GPUs that the node lends; in the log, what of them it does not.

    Raises:
        ConfigError: `executor.gpus` names one that is not there.
    """
    if config.gpus == "none":
        return []
    found = gpus.find()
    lent = gpus.chosen(config.gpus, found)
    if config.gpus == "auto":
        for why in found.left_out:
            log.warning("%s", why)
    for gpu in lent:
        log.info("lends GPU %s (%s)", gpu.name, gpu.visible)
        for node in gpus.closed_nodes(gpu):
            log.warning("GPU %s: a worker in a sandbox cannot open %s: its mode", gpu.name, node)
    return lent
