"""`rfaas version`: which versions these are, of this program and of what it stands on.

What somebody sends along who reports a fault, and what an inventory of nodes
reads as JSON: hence one look at everything, and never an error for what is missing.
"""

from __future__ import annotations

import os
import sys

from rfaas import __version__
from rfaas.config_sources import CONFIG_FORMAT
from rfaas.diagnose.rdma_core import LIBRARIES as RDMA_LIBRARIES
from rfaas.diagnose.rdma_core import SYSTEM, library
from rfaas.errors import UsageError
from rfaas.launch import embedded
from rfaas.proto.messages import PROTOCOL_VERSION

CARRIED = ("msgpack", "msgspec", "pyverbs", "tomli")


def run(as_json: bool) -> int:
    """Print it; returns the exit status."""
    facts = about()
    if as_json:
        import json

        print(json.dumps(facts, indent=2))
    else:
        print(text(facts))
    return 0


def verify() -> int:
    """Check the program's own file, byte for byte; returns the exit status.

    Raises:
        DamagedError: it is not what was built.
        UsageError: this program runs from a tree.
    """
    if not (path := embedded.one_file()):
        raise UsageError("this rfaas runs from a source tree, which has no checksum")
    embedded.verify(path)
    print(f"{path} is as it was built")
    return 0


def about() -> dict[str, object]:
    """Everything; plain values, as JSON has them."""
    system = os.uname()
    runs_as, path = how_it_runs()
    found = {name: library(name) for name in RDMA_LIBRARIES}
    return {
        "version": __version__,
        "protocol": PROTOCOL_VERSION,
        "configuration": CONFIG_FORMAT,
        "python": ".".join(map(str, sys.version_info[:3])),
        "platform": f"{system.sysname} {system.release} {system.machine}",
        "libc": libc(),
        "runs_as": runs_as,
        "path": path,
        "carried": carried(),
        "rdma_core": {name: one and one._asdict() for name, one in found.items()},
    }


def text(facts: dict[str, object]) -> str:
    """The same for people."""
    carries = facts["carried"]
    libraries = facts["rdma_core"]
    assert isinstance(carries, dict)
    assert isinstance(libraries, dict)
    missing = [name for name, one in libraries.items() if one is None]
    rdma = "; ".join(
        f"{name} {one['version'] or 'of unknown version'}"
        for name, one in libraries.items()
        if one is not None
    )
    if missing:
        rdma = "; ".join(filter(None, (rdma, f"no {', '.join(missing)}")))
        rdma += " (for RDMA: Debian's libibverbs1 and librdmacm1, Red Hat's libibverbs, librdmacm)"
    else:
        is_system = all(one["origin"] == SYSTEM for one in libraries.values())
        rdma += "; the system's" if is_system else "; carried by this program"
    rows = (
        ("protocol", facts["protocol"]),
        ("configuration", f"format {facts['configuration']}"),
        ("runs as", f"{facts['runs_as']} {facts['path']}"),
        ("python", facts["python"]),
        ("platform", f"{facts['platform']}, {facts['libc']}"),
        ("carries", ", ".join(f"{name} {version}" for name, version in carries.items())),
        ("rdma-core", rdma),
    )
    lines = "".join(f"\n  {name:15}{value}" for name, value in rows)
    return f"rfaas {facts['version']}{lines}"


def how_it_runs() -> tuple[str, str]:
    """binary, zipapp, source tree or installed package; and where it is."""
    if one := embedded.one_file():
        return ("binary" if getattr(sys, "frozen", False) else "zipapp"), one
    above = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if os.path.exists(f"{above}/rfaas.py") and os.path.exists(f"{above}/pyproject.toml"):
        return "source tree", above
    return "installed package", above


def carried() -> dict[str, str]:
    """The packages that came along, with their versions."""
    from importlib.metadata import PackageNotFoundError, version
    from importlib.util import find_spec

    found = {}
    for name in CARRIED:
        if find_spec(name) is None:
            continue
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # its metadata was left behind
            found[name] = getattr(__import__(name), "__version__", "of unknown version")
    return found


def libc() -> str:
    """The C library, such as "glibc 2.36"."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or "unknown libc"
    except (OSError, ValueError):
        return "unknown libc"
