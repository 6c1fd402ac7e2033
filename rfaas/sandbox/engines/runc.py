"""OCI bundles on runc or crun: an unpacked tree and a config.json of ours.

Nothing runs beside it, and no daemon is asked.  What config.json says is the OCI Runtime
Specification 1.0 (config.md, config-linux.md); the command line is that of runc(8), which
crun(1) shares.  Works for root, and for others in a user namespace of one user.
"""

from __future__ import annotations

import json
import os
from typing import Any

from rfaas.sandbox import cgroups
from rfaas.sandbox.engines import GROUPS, NOBODY, PROGRAM, Job
from rfaas.sandbox.gpus import nodes_of

MASKED = ("acpi", "asound", "kcore", "keys", "latency_stats", "timer_list", "sched_debug", "scsi")
READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")
DEVICES = ("null", "zero", "full", "random", "urandom")
HYBRID = "/sys/fs/cgroup/unified"


class Runc:
    """See the module's docstring; `sandbox.engines.Engine`."""

    inherits = True
    is_direct = True
    takes_trees = True

    def __init__(self, name: str) -> None:
        self.name = self.program = self.package = name
        # runc has some ten threads and 20 MiB, which would be the lease's, and makes groups itself.
        self.enters = name == "crun"

    def command(self, job: Job) -> list[str]:
        command = [self.program, "--root", f"{job.folder}/state"]
        if self.program == "crun":
            command += ["--cgroup-manager", "disabled"]  # ours hold, whatever the hierarchy
            if os.path.ismount(HYBRID) and os.geteuid() == 0:
                # It refuses hybrid cgroups, also where it is to use none: let it see no such thing.
                unmount = f'umount {HYBRID} && exec "$@"'
                hide = ["unshare", "--mount", "--propagation", "private", "sh", "-c", unmount, "sh"]
                command = hide + command
        return [*command, "run", "--preserve-fds", "1", "--bundle", job.folder, job.name]

    def prepare(self, job: Job) -> None:
        is_root = os.geteuid() == 0
        path, folders = cgroups.beside(job.name)
        with open(f"{job.folder}/{GROUPS}", "w") as file:  # it may be killed before it removes them
            file.writelines(f"{folder}\n" for folder in folders if is_root)
        with open(f"{job.folder}/config.json", "w") as file:
            json.dump(config(job, path if is_root else ""), file)

    def pull(self, image: str, options: dict[str, str]) -> list[list[str]]:
        return []  # launch/images.py unpacks trees

    def has(self, image: str, options: dict[str, str]) -> list[str]:
        return []

    def remove(self, name: str, folder: str) -> list[list[str]]:
        return []  # its state is in the folder, and its processes end with their first


def config(job: Job, cgroups_path: str) -> dict[str, Any]:
    """The bundle's config.json.

    Args:
        cgroups_path: of a group for its devices, which root alone can have; "": it is not root's.
    """
    user = NOBODY if cgroups_path else 0
    shown: list[dict[str, Any]] = []  # devices; nobody but root may make them
    namespaces = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")]
    linux: dict[str, Any] = {
        "namespaces": namespaces,
        "maskedPaths": [*(f"/proc/{name}" for name in MASKED), "/sys/firmware"],
        "readonlyPaths": [f"/proc/{name}" for name in READ_ONLY],
        "rootfsPropagation": "private",
    }
    if cgroups_path:
        linux["cgroupsPath"] = cgroups_path
        devices = [_device(node) for node in nodes_of(job.gpus)]
        allowed = [
            {"allow": True, "access": "rw", **{key: one[key] for key in ("type", "major", "minor")}}
            for one in devices
        ]
        linux["resources"] = {"devices": [{"allow": False, "access": "rwm"}, *allowed]}
        linux["devices"] = devices
    else:
        namespaces.append({"type": "user"})
        # One user, and runc wants it to be the container's root: with no capability, it is not.
        linux["uidMappings"] = [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
        linux["gidMappings"] = [{"containerID": 0, "hostID": os.getegid(), "size": 1}]
        shown = [_mount(node, "bind", node, "bind", "nosuid") for node in nodes_of(job.gpus)]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": user, "gid": user},
            "args": [PROGRAM, "3"],
            "env": [],
            "cwd": "/",
            "capabilities": {
                kind: []
                for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")
            },
            "noNewPrivileges": True,
        },
        "root": {"path": job.root, "readonly": True},
        "hostname": "rfaas",
        "mounts": [
            _mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
            _mount("/dev", "tmpfs", "tmpfs", "nosuid", "mode=755", "size=64k", "ro"),
            _mount(PROGRAM, "bind", job.program, "bind", "ro", "nosuid", "nodev"),
            *shown,
        ],
        "linux": linux,
    }


def _device(path: str) -> dict[str, Any]:
    """A node of its own in there, which the worker's user may open."""
    number = os.stat(path).st_rdev
    return {
        "path": path,
        "type": "c",
        "major": os.major(number),
        "minor": os.minor(number),
        "fileMode": 0o666,
        "uid": NOBODY,
        "gid": NOBODY,
    }


def _mount(place: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": place, "type": kind, "source": source, "options": list(options)}


RUNC, CRUN = Runc("runc"), Runc("crun")
