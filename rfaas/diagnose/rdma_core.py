"""rdma-core's libraries: the system's, or those that the binary carries where it has none.

Whoever needs libibverbs or librdmacm comes here first: native modules by `native`,
pyverbs and those who only ask by `load`.  Parts of rdma-core fit their like only, so it is
all of the one or all of the other: a system that lacks a library, or has no drivers, gets
everything from the binary (packaging/rdma_libraries.py), which keeps it packed until it is
needed and loads it from memory.  The dynamic linker takes what is loaded for all who need
a library of that name (SONAME, ld.so(8)), and drivers tell libibverbs of themselves.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

LIBRARIES = ("libibverbs.so.1", "librdmacm.so.1")
DRIVERS = "/etc/libibverbs.d"  # where rdma-core's drivers of a system are named
ARCHIVE = "rdma-core.zip"  # in what PyInstaller's loader unpacked
MEMORY = "/memfd:rdma-core/"  # as /proc/self/maps has what was loaded from it
SYSTEM, CARRIED, NOBODY = "system", "carried", ""
IN_WORDS = {SYSTEM: "the system's", CARRIED: "carried"}


class Library(NamedTuple):
    """A shared library; `version` is rdma-core's, "" where it cannot be had."""

    path: str
    version: str
    origin: str = SYSTEM  # or CARRIED


@cache
def load() -> str:
    """Load both libraries, for good; returns whose they are: SYSTEM, CARRIED or NOBODY.

    No device is opened: rdma-core looks for those when it is first asked.
    """
    try:
        import ctypes  # noqa: F401 - a Python may be without
    except ImportError:
        return NOBODY
    if os.path.isdir(DRIVERS) and _loads(LIBRARIES[1]):
        return SYSTEM
    if _load_carried():
        return CARRIED
    return SYSTEM if _loads(LIBRARIES[1]) else NOBODY


def native(name: str) -> Any:
    """A native module that is linked to rdma-core.

    Raises:
        ImportError: it was not built, or there is no rdma-core.
    """
    if os.path.isdir(DRIVERS):
        try:
            return import_module(f"rfaas.native.{name}")
        except ImportError:
            if load() != CARRIED:
                raise
    load()
    return import_module(f"rfaas.native.{name}")


def library(name: str) -> Library | None:
    """A shared library as programs here get it, or None."""
    if name in LIBRARIES:
        load()
    if not _loads(name):
        return None
    try:
        with open("/proc/self/maps") as maps:
            paths = {line.split(maxsplit=5)[5].rstrip("\n") for line in maps if f"/{name}" in line}
    except OSError:
        return Library("", "")
    path = min(paths, default="").removesuffix(" (deleted)")
    # libibverbs.so.1.14.44.0 is rdma-core 44.0: its CMakeLists.txt appends the package's version.
    numbers = os.path.basename(path).partition(".so.")[2].split(".")
    version = ".".join(numbers[2:]) if len(numbers) == 4 else ""
    return Library(path, version, CARRIED if path.startswith(MEMORY) else SYSTEM)


def in_words() -> str:
    """Whose is used, and which: "the system's rdma-core 44.0"; "" where there is none."""
    if not (whose := load()):
        return ""
    found = library(LIBRARIES[0])
    version = (found and found.version) or "of unknown version"
    return f"{IN_WORDS[whose]} rdma-core {version}"


def _loads(name: str) -> bool:
    try:
        import ctypes

        ctypes.CDLL(name)
    except (ImportError, OSError):
        return False
    return True


def _load_carried() -> bool:
    """All that is in ARCHIVE, in its order; False where there is none, or no memory file."""
    path = os.path.join(getattr(sys, "_MEIPASS", ""), ARCHIVE)
    if not (hasattr(sys, "_MEIPASS") and os.path.exists(path)):
        return False
    import ctypes
    from contextlib import ExitStack
    from zipfile import ZipFile

    with ExitStack() as files, ZipFile(path) as archive:
        for name in archive.namelist():
            if ".so" not in name:
                continue
            try:
                memory = os.memfd_create(MEMORY.removeprefix("/memfd:") + name)
                file = files.enter_context(open(memory, "wb"))
                file.write(archive.read(name))
                file.flush()
                # By a name that nothing else is loaded by, and that is another one each time:
                # dlopen(3) compares names, and descriptors stay open until all is loaded.
                ctypes.CDLL(f"/proc/self/./fd/{memory}")
            except OSError:  # no /proc, or a C library too old
                return False
    return True
