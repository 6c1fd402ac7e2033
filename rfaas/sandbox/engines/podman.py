"""Podman, rootless or as root: containers(7) without a daemon.

podman-run(1) passes our descriptor on (`--preserve-fds`), so the worker has its socket as
with a bundle.  What it costs more is podman's own start and its store of images.  The
options before `run` keep it off systemd and the journal, which a node need not have; its
limits are given because it would else raise them, which takes a capability.
"""

from __future__ import annotations

import os
import resource
import shutil

from rfaas.sandbox.engines import NO_HOOK, NOBODY, PROGRAM, Job
from rfaas.sandbox.gpus import nodes_of

OPEN_FILES = 1024
PROCESSES = 1024
HYBRID = "/sys/fs/cgroup/unified"


class Podman:
    """See the module's docstring; `sandbox.engines.Engine`."""

    name = program = package = "podman"
    inherits = True
    is_direct = False
    enters = False
    takes_trees = False

    def command(self, job: Job) -> list[str]:
        # Rootless, the container's root is the caller, and may be the only user there is.
        user = 0 if os.geteuid() else NOBODY
        return [
            *_podman(job.options),
            *("run", "--rm", "--name", job.name, "--pull", "never", "--log-driver", "none"),
            *("--network", "none", "--ipc", "none", "--no-hosts", "--hostname", "rfaas"),
            *("--read-only", "--read-only-tmpfs=false", "--user", f"{user}:{user}"),
            *("--cap-drop", "all", "--security-opt", "no-new-privileges"),
            *("--ulimit", f"nofile={_limit(resource.RLIMIT_NOFILE, OPEN_FILES)}"),
            *("--ulimit", f"nproc={_limit(resource.RLIMIT_NPROC, PROCESSES)}"),
            *("--env", NO_HOOK, *(f"--device={node}" for node in nodes_of(job.gpus))),
            *("--volume", f"{job.program}:{PROGRAM}:ro", "--preserve-fds", "1"),
            *("--entrypoint", PROGRAM, job.image, "3"),
        ]

    def prepare(self, job: Job) -> None:
        pass

    def pull(self, image: str, options: dict[str, str]) -> list[list[str]]:
        command = [*_podman(options), "pull"]
        if auth := options.get("registry_auth"):
            command += ["--authfile", auth]
        if options.get("registry_insecure"):
            command.append("--tls-verify=false")
        return [[*command, image]]

    def has(self, image: str, options: dict[str, str]) -> list[str]:
        return [*_podman(options), "image", "inspect", "--format", "{{.Architecture}}", image]

    def remove(self, name: str, folder: str) -> list[list[str]]:
        return [["podman", "rm", "--force", "--ignore", "--time", "0", name]]


def _podman(options: dict[str, str]) -> list[str]:
    command = ["podman", "--events-backend", "none", "--cgroup-manager", "cgroupfs"]
    runtime = options.get("podman_runtime", "")
    if not runtime and os.path.ismount(HYBRID) and shutil.which("runc"):
        runtime = "runc"  # crun, its first choice, refuses hybrid cgroups
    if runtime:
        command += ["--runtime", runtime]
    return command


def _limit(kind: int, wanted: int) -> str:
    _, hard = resource.getrlimit(kind)
    value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    return f"{value}:{value}"


ENGINE = Podman()
