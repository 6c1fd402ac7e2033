"""What the tests of the one file share: a copy of it, a bare environment, private mounts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

TREE = Path(__file__).resolve().parents[2]
LIBRARY = TREE / "functions/libfunctions.so"
PATIENCE_S = 50.0  # an administrator's machine may be busy; only a hang takes so long
# Of the virtual environment's Python, the one that it was made from: it is found from anywhere.
PYTHON = os.path.realpath(sys.executable)
PLAIN_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class Done(NamedTuple):
    """How a command ended, and what it said."""

    status: int
    out: bytes
    err: str


class Copy:
    """A copy of the program in a directory of its own, run as on a fresh node."""

    def __init__(self, program: Path, folder: Path, *, python: str = PYTHON) -> None:
        self.folder = folder
        self.path = folder / "rfaas"
        shutil.copy(program, self.path)
        self.home = folder / "home"
        self.home.mkdir()
        self.environ = {
            "PATH": PLAIN_PATH,
            "HOME": str(self.home),
            "RFAAS_RUNTIME_DIR": str(folder / "run"),
            "LC_ALL": "C",
        }
        if python:
            self.environ["RFAAS_PYTHON"] = python

    def run(
        self,
        *arguments: str,
        data: bytes = b"",
        before: tuple[str, ...] = (),
        environ: Mapping[str, str] = {},
    ) -> Done:
        """Run it, after the words `before`."""
        return run(
            [*before, str(self.path), *arguments], data=data, environ=self.environ | dict(environ)
        )

    def run_with_mounts(
        self, mounts: str, *arguments: str, data: bytes = b"", environ: Mapping[str, str] = {}
    ) -> Done:
        """Run it where the shell commands `mounts` were carried out, in mounts of its own."""
        before = in_mounts(mounts)
        return self.run(*arguments, data=data, before=before, environ=environ)


def in_mounts(mounts: str) -> tuple[str, ...]:
    """Words that run a command where these shell commands were carried out, in its own mounts."""
    require_private_mounts()
    return ("unshare", "-m", "sh", "-c", f'set -e\n{mounts}\nexec "$@"', "sh")


def run(command: list[str], *, data: bytes = b"", environ: Mapping[str, str]) -> Done:
    """Run a command to its end."""
    done = subprocess.run(
        command,
        input=data,
        capture_output=True,
        env=dict(environ),
        cwd="/",
        timeout=PATIENCE_S,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr.decode(errors="replace"))


def require_private_mounts() -> None:
    """Skip where this user may not mount anything."""
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode == 0:
            return
        reason = done.stderr.decode().strip()
    except OSError as error:
        reason = str(error)
    pytest.skip(f"no private mounts ({reason}): run the tests as root, with util-linux")
