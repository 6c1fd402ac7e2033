"""Folders of running containers: one each, locked as long as its keeper lives.

What a keeper could not take away, because it was killed itself, is found by its lock
that nobody holds, and taken away when the next zygote of this user starts.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
from contextlib import suppress

from rfaas.errors import SystemCallError
from rfaas.paths import ensure_private_dir, runtime_dir
from rfaas.sandbox import inside
from rfaas.sandbox.engines import GROUPS, Engine, table

REMOVE_TIMEOUT_S = 20.0


def parent() -> str:
    """Where the folders are; made if need be.

    Root's must be passed by the user that the container is: nobody may list it, each may enter.
    """
    path = _parent()
    ensure_private_dir(os.path.dirname(path))
    ensure_private_dir(path)
    return path


def _parent() -> str:
    return f"{runtime_dir()}/containers"


def make(engine: str) -> tuple[str, str, int]:
    """A new container's name, its folder, and the descriptor that locks that."""
    name = f"rfaas-{secrets.token_hex(8)}"
    folder = f"{parent()}/{name}"
    try:
        os.mkdir(folder, 0o700)
        lock = os.open(f"{folder}/{engine}.engine", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        raise SystemCallError(f"cannot make {folder}: {error.strerror}") from None
    return name, folder, lock


def remove(engine: Engine | None, name: str, folder: str) -> None:
    """Take away what is left of a container; `engine` where it may not have done its part."""
    for command in engine.remove(name, folder) if engine is not None else ():
        import subprocess  # seldom needed, and not soon loaded

        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=REMOVE_TIMEOUT_S,
                check=False,
            )
    with suppress(OSError), open(f"{folder}/{GROUPS}") as groups:
        for group in groups.read().splitlines():
            with suppress(OSError):
                os.rmdir(group)
    shutil.rmtree(folder, ignore_errors=True)


def sweep() -> int:
    """Remove what killed keepers have left; how many."""
    swept = 0
    folder_of_all = _parent()
    try:
        names = os.listdir(folder_of_all)
    except OSError:  # this user has never had a container
        return 0
    engines = table()
    for name in names:
        folder = f"{folder_of_all}/{name}"
        with suppress(OSError):
            (mark,) = [one for one in os.listdir(folder) if one.endswith(".engine")] or [""]
            lock = os.open(f"{folder}/{mark}", os.O_WRONLY | os.O_CLOEXEC) if mark else -1
            try:
                if lock >= 0:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: it lives
                engine = engines.get(mark.removesuffix(".engine"))
                if engine is not None:
                    remove(engine, name, folder)
                    swept += 1
            finally:
                if lock >= 0:
                    os.close(lock)
    return swept


def program_file() -> str:
    """A file with the program for the inside, which engines mount; it stays."""
    data = inside.program()
    path = f"{parent()}/inside-{hashlib.sha256(data).hexdigest()[:16]}"
    if not os.path.exists(path):
        new = f"{path}.{secrets.token_hex(4)}"
        try:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o755)
            with open(fd, "wb") as file:
                file.write(data)
            os.chmod(new, 0o755)
            os.rename(new, path)
        except OSError as error:
            raise SystemCallError(f"cannot write {path}: {error.strerror}") from None
    return path
