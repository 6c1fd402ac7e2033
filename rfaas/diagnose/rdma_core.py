"""rdma-core's libraries: the system's, or those that the binary carries where it has none.

Whoever needs libibverbs or librdmacm comes here first: native modules by `native`,
pyverbs and those who only ask by `load`.  Parts of rdma-core fit their like only, so it
is all of the one or all of the other: a system that lacks either library gets both, and
the drivers, from the binary (packaging/rdma_libraries.py).  These lie in a folder that the
dynamic linker does not search; once they are loaded it takes them for all who need
libraries of their names (SONAME, ld.so(8)).
"""

from __future__ import annotations

import os
import re
import sys
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

LIBRARIES = ("libibverbs.so.1", "librdmacm.so.1")
FOLDER = "rdma-core"  # in what PyInstaller's loader unpacked
# In the order in which they need each other.
CARRIED = ("libnl-3.so.", "libnl-route-3.so.", "libibverbs.so.", "librdmacm.so.")
DRIVER = re.compile(r"(lib\w+)-rdmav\d+\.so")  # the number is that of libibverbs' private ABI
# libibverbs reads it when it first looks for devices: drivers, by path less "-rdmav34.so".
DRIVERS_VARIABLE = "RDMAV_DRIVERS"
SYSTEM, OURS, NOBODY = "system", "carried", ""


class Library(NamedTuple):
    """A shared library; `version` is rdma-core's, "" where it cannot be had."""

    path: str
    version: str
    origin: str = SYSTEM  # or OURS


@cache
def load() -> str:
    """Load both libraries, and keep them; returns whose: SYSTEM, OURS, or NOBODY.

    No device is opened: libibverbs looks for those when it is first asked.
    """
    try:
        import ctypes

        ctypes.CDLL("librdmacm.so.1")  # which needs libibverbs
    except ImportError:
        return NOBODY
    except OSError:
        return _load_carried(folder()) if folder() else NOBODY
    return SYSTEM


def native(name: str) -> Any:
    """A native module that is linked to rdma-core.

    Raises:
        ImportError: it was not built, or there is no rdma-core.
    """
    try:
        return import_module(f"rfaas.native.{name}")
    except ImportError:
        if load() != OURS:
            raise
    return import_module(f"rfaas.native.{name}")


def library(name: str) -> Library | None:
    """A shared library as programs here get it, or None."""
    try:
        import ctypes

        if name in LIBRARIES:
            load()
        ctypes.CDLL(name)
    except (ImportError, OSError):
        return None
    try:
        with open("/proc/self/maps") as maps:
            paths = {line.split(maxsplit=5)[5].rstrip("\n") for line in maps if f"/{name}" in line}
    except OSError:
        return Library("", "")
    path = min(paths, default="")
    # libibverbs.so.1.14.44.0 is rdma-core 44.0: its CMakeLists.txt appends the package's version.
    numbers = os.path.basename(path).partition(".so.")[2].split(".")
    version = ".".join(numbers[2:]) if len(numbers) == 4 else ""
    is_ours = bool(folder()) and os.path.dirname(path) == os.path.realpath(folder())
    return Library(path, version, OURS if is_ours else SYSTEM)


def in_words() -> str:
    """Whose rdma-core is used, and which: "the system's rdma-core 44.0"; "" where there is none."""
    if not (whose := load()):
        return ""
    found = library(LIBRARIES[0])
    version = found.version if found else ""
    article = "the system's" if whose == SYSTEM else "carried"
    return f"{article} rdma-core {version or 'of unknown version'}"


def folder() -> str:
    """Where the carried libraries are; "" where this program carries none."""
    path = os.path.join(getattr(sys, "_MEIPASS", ""), FOLDER)
    return path if hasattr(sys, "_MEIPASS") and os.path.isdir(path) else ""


def _load_carried(place: str) -> str:
    import ctypes

    names = sorted(os.listdir(place))
    try:
        for start in CARRIED:
            (name,) = (name for name in names if name.startswith(start))
            ctypes.CDLL(f"{place}/{name}")
    except (OSError, ValueError):  # another C library, perhaps
        return NOBODY
    drivers = [f"{place}/{found[1]}" for name in names if (found := DRIVER.fullmatch(name))]
    # A program of ours that started this one may have named its own, which are the same.
    said = os.environ.get(DRIVERS_VARIABLE, "").split(":")
    drivers += [driver for driver in said if driver and f"/{FOLDER}/lib" not in driver]
    os.environ[DRIVERS_VARIABLE] = ":".join(drivers)
    return OURS
