"""The packages that the web needs beside what all of rFaaS needs."""

from __future__ import annotations

from importlib.util import find_spec

NEEDED = ("h11", "microdot")


def missing() -> list[str]:
    """Those that are not here."""
    return [name for name in NEEDED if find_spec(name) is None]
