"""Apptainer and Singularity, which share their command line.

By themselves they hold almost nothing: the home, /tmp, the network and the processes of
the host are in there.  The options ask for what can be had without their setuid helper
(apptainer-exec(1)): `--userns --containall` (own files, environment, processes and IPC),
`--net --network none`, `--no-privs`, `--cleanenv`.  An unpacked tree is run ("sandbox" in
their words), so images are fetched as for a bundle and no SIF file is made.
"""

from __future__ import annotations

import os

from rfaas.sandbox.engines import SOCKET_FOLDER, SOCKET_PROGRAM, Job, socket_inside
from rfaas.sandbox.gpus import nodes_of


class Apptainer:
    """See the module's docstring; `sandbox.engines.Engine`."""

    inherits = False  # its starter closes what it does not know
    is_direct = True
    enters = False
    takes_trees = True
    package = ""

    def __init__(self, name: str) -> None:
        self.name = self.program = name

    def command(self, job: Job) -> list[str]:
        return [
            *(self.program, "--silent", "exec", "--userns", "--containall", "--cleanenv"),
            *("--net", "--network", "none", "--no-privs", "--no-home", "--no-eval"),
            *("--hostname", "rfaas", "--pwd", "/", *_gpus(job)),
            *("--bind", f"{job.program}:{SOCKET_PROGRAM}:ro"),
            *("--bind", f"{os.path.dirname(job.socket)}:{SOCKET_FOLDER}:ro"),
            *(job.root, SOCKET_PROGRAM, socket_inside()),
        ]

    def prepare(self, job: Job) -> None:
        pass

    def pull(self, image: str, options: dict[str, str]) -> list[list[str]]:
        return []  # launch/images.py unpacks trees

    def has(self, image: str, options: dict[str, str]) -> list[str]:
        return []

    def remove(self, name: str, folder: str) -> list[list[str]]:
        return []  # all of it ends with its processes


def _gpus(job: Job) -> list[str]:
    """--nv and --rocm bring the driver's libraries, and the nodes of all such GPUs with them."""
    kinds = {gpu.kind for gpu in job.gpus}
    flags = [flag for kind, flag in (("nvidia", "--nv"), ("amd", "--rocm")) if kind in kinds]
    others = nodes_of([gpu for gpu in job.gpus if gpu.kind == "device"])
    return flags + [word for node in others for word in ("--bind", node)]


APPTAINER, SINGULARITY = Apptainer("apptainer"), Apptainer("singularity")
