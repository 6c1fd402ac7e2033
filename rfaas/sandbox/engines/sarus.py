"""Sarus, the container engine of CSCS for HPC.

It runs an OCI bundle of its own making as the calling user, with the site's hooks (MPI,
GPUs), and shares the host's network and processes: what it holds is files.  Its user guide
has the commands: `sarus pull IMAGE@sha256:...`, `sarus run --mount=type=bind,... IMAGE@...`,
`sarus images`; the published rFaaS ran it with the same `--mount` and `-e`.
"""

from __future__ import annotations

import os

from rfaas.sandbox.engines import SOCKET_FOLDER, SOCKET_PROGRAM, Job, socket_inside


class Sarus:
    """See the module's docstring; `sandbox.engines.Engine`."""

    name = program = "sarus"
    package = ""
    inherits = False
    is_direct = True
    enters = False
    takes_trees = False

    def command(self, job: Job) -> list[str]:
        link = os.path.dirname(job.socket)
        return [
            *("sarus", "run", f"--name={job.name}", "--workdir=/"),
            f"--mount=type=bind,source={job.program},destination={SOCKET_PROGRAM},readonly",
            f"--mount=type=bind,source={link},destination={SOCKET_FOLDER}",
            *(f"--entrypoint={SOCKET_PROGRAM}", job.image, socket_inside()),
        ]

    def prepare(self, job: Job) -> None:
        pass

    def pull(self, image: str, options: dict[str, str]) -> list[list[str]]:
        return [["sarus", "pull", image]]

    def has(self, image: str, options: dict[str, str]) -> list[str]:
        # `sarus images` lists tags and no architecture, and there is no `inspect` (its user guide,
        # "Sarus command line"); pulling what is there costs one question.
        return []

    def remove(self, name: str, folder: str) -> list[list[str]]:
        return [["sarus", "kill", name]]


ENGINE = Sarus()
