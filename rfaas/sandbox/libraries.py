"""Which files of the system a sandbox shows: the named libraries, where the linker finds them."""

from __future__ import annotations

import os
from collections.abc import Iterable

# ld.so(8) looks here where its cache does not help; the first two differ by distribution.
_FOLDERS = (
    f"/lib/{os.uname().machine}-linux-gnu",
    f"/usr/lib/{os.uname().machine}-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
)
_CACHE = "/etc/ld.so.cache"


def found(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The paths to show for libraries (`libm.so.6`) and absolute paths; and which are missing."""
    paths = [_CACHE] if os.path.exists(_CACHE) else []
    missing = []
    for name in names:
        folders = ("",) if name.startswith("/") else _FOLDERS
        here = [path for folder in folders if os.path.exists(path := os.path.join(folder, name))]
        if here:
            paths.append(here[0])
        else:
            missing.append(name)
    return list(dict.fromkeys(paths)), missing
