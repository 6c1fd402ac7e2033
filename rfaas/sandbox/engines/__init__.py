"""What runs containers: one file per engine, one interface.

An engine says which command line runs a job and what it leaves behind.  It starts
nothing: `sandbox/keeper.py` does, and `launch/images.py` has it fetch images.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from rfaas.errors import SystemCallError
from rfaas.proto.worker_messages import Gpu, Limits

# Where the program and its socket are inside: in /dev, which each engine makes anew, so that
# nothing has to be there in the image.
PROGRAM = "/dev/rfaas/inside"
# Engines that pass no descriptors make the places of mounts by themselves, but not in /dev.
SOCKET_PROGRAM = "/rfaas/inside"
SOCKET_FOLDER = "/rfaas/link"
NOBODY = 65534
# In a job's folder: control groups that its engine makes, to be removed with it, one a line.
GROUPS = "groups"
# NVIDIA's hook gives a container what its image names, by default all, unless it is told this.
NO_HOOK = "NVIDIA_VISIBLE_DEVICES=void"
# Runs Docker with a NIC for each container, and how its makers install it (container_tools).
SRIOV = "docker_rdma_sriov"
SRIOV_INSTALL = "docker run --net=host -v /usr/bin:/tmp rdma/container_tools_installer"


class Job(NamedTuple):
    """One container to run."""

    name: str  # at the engine
    folder: str  # a private directory of its own, which goes with it
    image: str  # as the engine knows it
    root: str  # its unpacked tree, where the engine takes one; ""
    program: str  # the file of native/inside.c's program
    limits: Limits
    cpus: tuple[int, ...]
    options: dict[str, str]  # of the node's configuration: keys of [container]
    gpus: tuple[Gpu, ...] = ()

    @property
    def socket(self) -> str:
        """Where an engine that passes no descriptors finds the keeper."""
        return f"{self.folder}/link/keeper"


class Engine(Protocol):
    """One engine."""

    name: str
    program: str  # that must be on PATH
    package: str  # that brings it, in Debian; "" where Debian has none
    inherits: bool  # whether a descriptor of ours becomes one of the worker's
    is_direct: bool  # whether its containers write to our pipe, and not through a process of it
    enters: bool  # whether it is small enough to be in the lease's control groups itself
    takes_trees: bool  # runs an unpacked tree; others keep images of their own

    def command(self, job: Job) -> list[str]:
        """The command line that runs it in the foreground."""

    def prepare(self, job: Job) -> None:
        """Write what the engine reads into the job's folder."""

    def pull(self, image: str, options: dict[str, str]) -> list[list[str]]:
        """The command lines that fetch an image; the engine keeps it."""

    def has(self, image: str, options: dict[str, str]) -> list[str]:
        """The command line that succeeds where the image is there, and prints its architecture.

        In Go's words (GOARCH), as images have it; none where the engine cannot be asked.
        """

    def remove(self, name: str, folder: str) -> list[list[str]]:
        """The command lines that remove what a job has left, when it is surely dead."""


def socket_inside() -> str:
    """Where the program finds its keeper's socket, as it sees it."""
    return f"{SOCKET_FOLDER}/keeper"


def table() -> dict[str, Engine]:
    """All engines by name; "auto" takes the first that is there."""
    from rfaas.sandbox.engines import apptainer, docker, podman, runc, sarus

    engines: Sequence[Engine] = (
        *(runc.RUNC, runc.CRUN, podman.ENGINE, docker.ENGINE),
        *(apptainer.APPTAINER, apptainer.SINGULARITY, sarus.ENGINE),
    )
    return {one.name: one for one in engines}


def has_sriov(engine: Engine, options: Mapping[str, str]) -> bool:
    """Whether its containers have a network of their own, which the site has wanted for them."""
    return engine.name == "docker" and bool(options.get("docker_rdma_sriov"))


def chosen(name: str, *, sriov: bool = False) -> Engine:
    """The engine called `name`, or for "auto" the first that is installed.

    Args:
        sriov: whether Docker is to be run by its wrapper (`container.docker_rdma_sriov`).

    Raises:
        SystemCallError: it, or the wrapper, is not installed; says how to.
    """
    engine = _chosen(name)
    if sriov and engine.name == "docker" and shutil.which(SRIOV) is None:
        raise missing(engine, SRIOV)
    return engine


def _chosen(name: str) -> Engine:
    engines = table()
    if name == "auto":
        for engine in engines.values():
            if shutil.which(engine.program):
                return engine
        programs = ", ".join(engine.program for engine in engines.values())
        raise SystemCallError(
            f"no container engine is installed on this node; it would take one of {programs}",
            hint="as root: apt-get install runc skopeo",
        )
    engine = engines[name]
    if shutil.which(engine.program) is None:
        raise missing(engine, engine.program)
    return engine


def missing(engine: Engine, program: str) -> SystemCallError:
    """The engine is not installed, or what runs it."""
    if program == SRIOV:
        return SystemCallError(
            f"{program}, which container.docker_rdma_sriov wants, is not installed on this node",
            hint=f"as root: {SRIOV_INSTALL}",
        )
    how = f"as root: apt-get install {engine.package}" if engine.package else ""
    return SystemCallError(
        f"{engine.program}, which container.engine names, is not installed on this node",
        hint=how or f"install {engine.name} from its makers, or set container.engine to another",
    )


def listen(job: Job) -> socket.socket:
    """Where the program of an engine that passes no descriptors connects to."""
    from rfaas.sandbox import inside

    os.mkdir(os.path.dirname(job.socket), 0o755)
    return inside.listener(job.socket)
