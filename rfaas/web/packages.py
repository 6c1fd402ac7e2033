"""The packages that the web needs beside what all of rFaaS needs: installed, or carried.

The one-file programs carry their sources, packed, once for all versions of
Python (packaging/parts.py): only a resource manager reads them, as it starts.
"""

from __future__ import annotations

import io
import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from types import ModuleType
from zipfile import ZipFile

NEEDED = ("h11", "microdot")
CARRIED = "packages.zip"  # beside this file


class Carried(MetaPathFinder, Loader):
    """Imports from a zip that lies in memory."""

    def __init__(self, data: bytes) -> None:
        self._zip = ZipFile(io.BytesIO(data))
        self._names = set(self._zip.namelist())

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """What `sys.meta_path` asks."""
        member = self._member(name)
        if member not in self._names:
            return None
        is_package = member.endswith("/__init__.py")
        return spec_from_loader(name, self, origin=f"{CARRIED}/{member}", is_package=is_package)

    def exec_module(self, module: ModuleType) -> None:
        """Run a module's code."""
        member = self._member(module.__name__)
        exec(compile(self._zip.read(member), f"{CARRIED}/{member}", "exec"), module.__dict__)

    def _member(self, name: str) -> str:
        path = name.replace(".", "/")
        package = f"{path}/__init__.py"
        return package if package in self._names else f"{path}.py"


def missing() -> list[str]:
    """Those that can be had neither way; what is carried can be imported from now on."""
    absent = [name for name in NEEDED if find_spec(name) is None]
    if absent and (data := _carried()):
        sys.meta_path.append(Carried(data))
        absent = [name for name in NEEDED if find_spec(name) is None]
    return absent


def _carried() -> bytes:
    path = os.path.join(os.path.dirname(__file__), CARRIED)
    try:
        data: bytes = __loader__.get_data(path)  # type: ignore[name-defined]
    except OSError:  # a tree, or an installation by pip
        return b""
    return data
