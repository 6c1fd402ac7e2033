"""pyverbs, wherever it is: in the environment, or the distribution's beside another Python.

pyverbs must match the node's libibverbs, so the distribution's (python3-pyverbs) is the one
that works; an environment such as ours does not see it.  Its modules load into any Python
of the same version, for that is what their names promise.  The one-file program carries
one, for nodes that have none.
"""

from __future__ import annotations

import sys
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder
from importlib.util import module_from_spec
from pathlib import Path

from rfaas.diagnose import rdma_core

PLACES = ("/usr/lib/python3/dist-packages", "/usr/lib64/python{version}/site-packages")


def load_pyverbs() -> str:
    """Make `import pyverbs` work from here on; returns where it is.

    Raises:
        ImportError: there is none for this Python, or libibverbs is missing.
    """
    rdma_core.load()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    # As launch/embedded.py finds out, which is above this layer.
    is_carried = hasattr(globals().get("__loader__"), "one_file") or hasattr(sys, "frozen")
    is_loaded = "pyverbs.enums" in sys.modules  # which a second package would not get
    if is_carried and not is_loaded and _load_from_places(version):
        import pyverbs.enums
    else:
        try:
            import pyverbs.enums
        except ModuleNotFoundError as error:
            if error.name not in ("pyverbs", "pyverbs.enums"):
                raise
            sys.modules.pop("pyverbs", None)
            if not _load_from_places(version):
                raise ImportError(
                    f"there is no pyverbs for Python {version} (package python3-pyverbs)"
                ) from None
            import pyverbs.enums  # noqa: PLC0415,RUF100 - found now
    return str(Path(pyverbs.enums.__file__).parent)


def _load_from_places(version: str) -> bool:
    return any(_load_from(place.format(version=version)) for place in PLACES)


def _load_from(place: str) -> bool:
    if not Path(place, f"pyverbs/enums{EXTENSION_SUFFIXES[0]}").exists():
        return False  # none, or of another Python
    spec = PathFinder.find_spec("pyverbs", [place])
    if spec is None or spec.loader is None:
        return False
    module = module_from_spec(spec)
    sys.modules["pyverbs"] = module
    spec.loader.exec_module(module)
    return True
