"""Rules that the whole tree keeps, whatever the code does."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import rfaas

TREE = Path(__file__).resolve().parent.parent
PYPROJECT = TREE / "pyproject.toml"
LINES_MAX = 499
NOT_OURS = {"build", "dist"}  # and what starts with a dot

# The module map: from the top down; a module imports from its own line and the
# lines below.  A new module is entered here before it can be imported.
LAYERS = (
    ("cli", "commands", "quick"),
    ("admin", "serve"),  # serve is the one place that knows more than one role
    ("roles",),
    ("bench", "demo"),  # they use what a user has
    ("client", "web"),
    ("launch",),
    ("sandbox",),
    ("control",),
    ("transport",),
    ("diagnose",),  # below transports: they find their devices by it
    ("native",),
    ("store",),
    ("core",),
    ("config", "config_sources", "config_text", "addresses", "paths"),
    ("proto",),
    ("clock", "errors", "failpoints", "terminal", "units"),
)
RANK = {name: rank for rank, layer in enumerate(reversed(LAYERS)) for name in layer}

PURE = ("core", "proto")  # decisions and formats: events and a time go in
INPUT_OUTPUT = """
    asyncio concurrent ctypes fcntl http logging multiprocessing os pathlib queue random sched
    secrets select selectors shutil signal socket socketserver sqlite3 ssl subprocess tempfile
    threading time
""".split()  # noqa: SIM905 - as one reads it
HEAVY = {"asyncio", "logging", "msgpack", "numpy", "pyverbs", "rfaas.native", "socket", "sqlite3"}


class Import(NamedTuple):
    """One import statement's target."""

    file: Path
    line: int
    module: str  # rfaas.core.ledger

    def __str__(self) -> str:
        return f"{self.file.relative_to(TREE)}:{self.line} imports {self.module}"


def sources(folder: Path, *suffixes: str) -> Iterator[Path]:
    """The tree's own files; not what was installed, built or generated."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in NOT_OURS]
        for file in (Path(place, name) for name in names if name.endswith(suffixes)):
            if file.suffix != ".c" or not file.with_suffix(".pyx").exists():
                yield file


def module_of(file: Path) -> str:
    """rfaas/core/ledger.py -> rfaas.core.ledger, rfaas/core/__init__.py -> rfaas.core"""
    return ".".join(file.relative_to(TREE).with_suffix("").parts).removesuffix(".__init__")


def imports_of(file: Path) -> Iterator[Import]:
    """Every import of a file, inside functions and for type checkers too."""
    package = file.relative_to(TREE).parent.parts
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                path = TREE.joinpath(*name.split("."))
                is_module = path.is_dir() or path.with_suffix(".py").exists()
                yield Import(file, node.lineno, name if is_module else base)


def imports_of_cython(file: Path) -> Iterator[Import]:
    """The same of a .pyx, which `ast` cannot read: by the line."""
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        if match := re.match(
            r"\s*(?:from\s+(rfaas\S*)\s+c?import\s+(\w*)|c?import\s+(rfaas\S*))", line
        ):
            base, name, whole = match.groups()
            both = f"{base}.{name}"
            path = TREE.joinpath(*both.split("."))
            yield Import(
                file, number, whole or (both if path.with_suffix(".py").exists() else base)
            )


def layer_of(module: str) -> str:
    """rfaas.core.ledger -> core; the package itself, the face, has none."""
    return module.split(".")[1] if "." in module else ""


@cache
def all_imports() -> list[Import]:
    """Of every module of the package."""
    return [
        *(found for file in sources(TREE / "rfaas", ".py") for found in imports_of(file)),
        *(found for file in sources(TREE / "rfaas", ".pyx") for found in imports_of_cython(file)),
    ]


def test_files_are_short() -> None:
    files = list(sources(TREE, ".py", ".pyi", ".pyx", ".pxd", ".pxi", ".c", ".h"))
    lengths = {str(f.relative_to(TREE)): len(f.read_bytes().splitlines()) for f in files}
    assert {f: n for f, n in lengths.items() if n > LINES_MAX} == {}, "split them"
    assert {"rfaas.py", "tests/test_project.py"} <= set(lengths)


def test_every_module_has_a_layer() -> None:
    modules = {layer_of(module_of(file)) for file in sources(TREE / "rfaas", ".py")} - {""}
    assert modules <= set(RANK), "enter them in LAYERS"


def test_imports_point_down() -> None:
    upward = []
    for found in all_imports():
        own = layer_of(module_of(found.file))
        if not own or found.module.split(".")[0] != "rfaas":
            continue  # the face lends names of all layers
        target = layer_of(found.module)
        if target and RANK[target] > RANK[own]:
            upward.append(str(found))
    assert upward == []


def test_roles_do_not_know_each_other() -> None:
    def role(module: str) -> str:
        name = module.split(".")[2] if module.startswith("rfaas.roles.") else ""
        return "resource_manager" if name.startswith("manager_") else name

    def are_one(a: str, b: str) -> bool:  # executor and executor_leases: one role in two files
        return f"{a}_".startswith(f"{b}_") or f"{b}_".startswith(f"{a}_")

    pairs = [(found, role(module_of(found.file)), role(found.module)) for found in all_imports()]
    assert [str(found) for found, a, b in pairs if a and b and not are_one(a, b)] == []


def test_decisions_do_no_input_or_output() -> None:
    found = [i for i in all_imports() if layer_of(module_of(i.file)) in PURE]
    assert [str(i) for i in found if i.module.split(".")[0] in INPUT_OUTPUT] == []
    assert found


def test_packaging_is_no_package() -> None:
    assert not (TREE / "packaging/__init__.py").exists(), "it would hide PyPI's package `packaging`"


def test_versions_agree() -> None:
    declared = re.search(r'^version = "(\d+\.\d+\.\d+)"', PYPROJECT.read_text(), re.MULTILINE)
    assert declared
    assert rfaas.__version__ == declared[1]


@pytest.mark.parametrize("module", ["rfaas", "rfaas.cli"])
def test_import_is_light(module: str) -> None:
    """What the command line needs for every call costs milliseconds."""
    code = f"import sys; sys.path.insert(0, {str(TREE)!r}); import {module}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, check=False)
    assert run.returncode == 0, run.stderr.decode()
    assert set(run.stdout.decode().split()) & HEAVY == set()


def test_make_help_lists_every_target() -> None:
    makefile = (TREE / "Makefile").read_text()
    targets = set(re.findall(r"^([A-Za-z][\w./-]*)\s*:(?!=)", makefile, flags=re.MULTILINE))
    run = subprocess.run(
        ["make", "-s", "help"], cwd=TREE, check=True, capture_output=True, text=True
    )
    assert set(re.findall(r"^make (\S+) +\S", run.stdout, flags=re.MULTILINE)) == targets
    assert {"build", "check", "clean", "demo", "test"} <= targets
