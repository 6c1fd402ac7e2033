"""A user-mode Linux kernel: a process of ours whose programs run at full speed."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from guest import Request


class UserMode:
    """The kernel that build-kernel makes, or one like it."""

    ports = ("/dev/ttyS1", "/dev/ttyS2", "/dev/ttyS3")
    can_two_hosts = True

    def __init__(self, kernel: Path) -> None:
        self.kernel = kernel

    def mounts(self, request: Request) -> list[str]:
        """hostfs shows a directory of the host, writable."""
        return [
            f"mount -t hostfs -o {shlex.quote(path)} none $root{shlex.quote(path)}"
            for path in request.writable
        ]

    def command(self, request: Request, job: Path, descriptors: Sequence[int]) -> list[str]:
        """The kernel's command line; `job` becomes a variable of its first program."""
        return [
            str(self.kernel),
            f"mem={request.memory_mib}M",
            f"ncpus={request.cpus}",
            "seccomp=on",  # programs are entered by seccomp, which is faster than ptrace
            "quiet",
            "noreboot",
            "panic=-1",  # a panic ends it
            "ro",
            "root=/dev/root",
            "rootfstype=hostfs",
            "rootflags=/",
            f"init={job}/init-uml",
            f"job={job}",
            f"uml_dir={job}",
            "con=null",
            "con0=null,fd:1",
            "ssl=null",
            # An input of nothing, an output to the pipe.
            *(f"ssl{line}=null,fd:{pipe}" for line, pipe in enumerate(descriptors, start=1)),
        ]
