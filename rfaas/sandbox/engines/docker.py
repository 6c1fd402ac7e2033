"""Docker, and Docker with a virtual function of the NIC for each container.

With `container.docker_rdma_sriov` this is what the published rFaaS ran: the wrapper
`docker_rdma_sriov` of Mellanox's docker-sriov-plugin, which takes what `docker run` takes
and moves the RDMA device of the network's virtual function in (its README: "docker_rdma_sriov
run --net=NAME IMAGE", the network made by "docker network create -d sriov"); network,
address, volume (at /opt) and registry are that system's keys.  A function in there may use the
network that the NIC is in (`has_sriov`), so it is for people whom the site trusts.

The daemon passes no descriptors, so the worker connects to its keeper's socket, which is
mounted in.  Options: docker-run(1).
"""

from __future__ import annotations

import os

from rfaas.sandbox.engines import (
    NO_HOOK,
    NOBODY,
    SOCKET_FOLDER,
    SOCKET_PROGRAM,
    SRIOV,
    Job,
    has_sriov,
    socket_inside,
)
from rfaas.sandbox.gpus import nodes_of


class Docker:
    """See the module's docstring; `sandbox.engines.Engine`."""

    name = program = "docker"
    package = "docker.io"
    inherits = False
    is_direct = False
    enters = False
    takes_trees = False

    def command(self, job: Job) -> list[str]:
        options = job.options
        if has_sriov(self, options):
            command = [SRIOV, "run", "--rm", "-i"]
            # What a NIC is to reach is locked memory; the lease's limit bounds it.
            command += [f"--net={options['docker_network']}", "--ulimit=memlock=-1:-1"]
            if address := options.get("docker_address"):
                command += [f"--ip={address}"]
        else:
            command = ["docker", "run", "--rm", "-i", "--net=none"]
        if volume := options.get("docker_volume"):
            command += ["--volume", f"{volume}:/opt:ro"]
        command += ["--name", job.name, "--pull=never", "--log-driver=none", "--hostname=rfaas"]
        command += ["--read-only", "--ipc=none"]
        command += [f"--user={NOBODY}:{NOBODY}", "--cap-drop=ALL"]
        command += ["--security-opt=no-new-privileges", "--init=false", f"--env={NO_HOOK}"]
        command += [f"--device={node}" for node in nodes_of(job.gpus)]
        if job.limits.memory_bytes:
            command += [f"--memory={job.limits.memory_bytes}"]
        if job.limits.processes:
            command += [f"--pids-limit={job.limits.processes + job.limits.lanes + 2}"]
        command += ["--volume", f"{job.program}:{SOCKET_PROGRAM}:ro"]
        command += ["--volume", f"{os.path.dirname(job.socket)}:{SOCKET_FOLDER}:ro"]
        return [*command, f"--entrypoint={SOCKET_PROGRAM}", job.image, socket_inside()]

    def prepare(self, job: Job) -> None:
        pass

    def pull(self, image: str, options: dict[str, str]) -> list[list[str]]:
        command = ["docker"]
        if auth := options.get("registry_auth"):
            command += ["--config", os.path.dirname(auth)]  # of a config.json
        return [[*command, "pull", image]]

    def has(self, image: str, options: dict[str, str]) -> list[str]:
        return ["docker", "image", "inspect", "--format", "{{.Architecture}}", image]

    def remove(self, name: str, folder: str) -> list[list[str]]:
        return [["docker", "rm", "--force", name]]


ENGINE = Docker()
