"""Starting costs what it must: commands import what they use and no more."""

from __future__ import annotations

import re
import signal
import zipfile
from pathlib import Path

import pytest

from tests.harness.processes import Child
from tests.packaging.one_file import LIBRARY, PYTHON, Copy, run

# Modules beside those of a bare interpreter.  Each costs 0.1 to 0.5 ms: raise a bound
# only for what is used on every such start.
HELP_MODULES_MAX = 45
CALL_MODULES_MAX = 120
NEVER_FOR_HELP = {"msgspec", "msgpack", "socket", "logging", "asyncio", "subprocess", "typing"}
NEVER_FOR_CALL = {"asyncio", "logging", "sqlite3", "ssl", "tomllib", "ctypes", "json", "http"}
NEVER_FOR_CALL |= {"argparse", "decimal", "textwrap", "traceback", "uuid"}


def modules(copy: Copy, *arguments: str) -> set[str]:
    """The names that a command has imported, beside those of the bare interpreter."""
    header = copy.path.read_bytes()[:4096].decode("latin-1")
    found = re.search(r"-I -S -c '(.*)' \"\$file\"", header)
    assert found
    command = [PYTHON, "-I", "-S", "-v", "-c", found[1], str(copy.path), *arguments]
    done = run(command, environ=copy.environ)
    assert done.status == 0, done.err[-2000:]
    bare = run([PYTHON, "-I", "-S", "-v", "-c", "pass"], environ=copy.environ)
    pattern = re.compile(r"^import '?([\w.]+)'? #", re.MULTILINE)
    return set(pattern.findall(done.err)) - set(pattern.findall(bare.err))


def cold(program: Path) -> set[str]:
    """The modules that the file carries deflated, for a few starts only."""
    with zipfile.ZipFile(program) as archive:
        deflated = [info.filename for info in archive.infolist() if info.compress_type]
    names = [name for name in deflated if name.endswith((".pyc", ".so", ".py"))]
    modules = [re.sub(r"^cp3\d+/|(/__init__)?\.\w+$", "", name) for name in names]
    return {name.replace("/", ".") for name in modules}


def top(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("arguments", [("--help",), ("call", "--help")])
def test_help_imports_little(copy: Copy, arguments: tuple[str, ...]) -> None:
    found = modules(copy, *arguments)
    assert top(found) & NEVER_FOR_HELP == set()
    assert len(found) <= HELP_MODULES_MAX, sorted(found)


def test_call_imports_what_it_uses(copy: Copy, tmp_path: Path) -> None:
    role = Child(
        [str(copy.path), "serve", "--role", "all"], copy.environ, copy.folder / "serve.log"
    )
    try:
        role.lines.until("executor ")
        found = modules(copy, "call", str(LIBRARY), "echo")
        assert top(found) & NEVER_FOR_CALL == set()
        assert "rfaas.roles.client" in found
        assert not {name for name in found if name.startswith(("rfaas.store", "rfaas.admin"))}
        assert len(found) <= CALL_MODULES_MAX, (len(found), sorted(found))
        assert found & cold(copy.path) <= {"msgpack._cmsgpack"}, "packaging/build_zipapp.py: HOT"
        role.signal(signal.SIGTERM)
        assert role.wait() == 0
    finally:
        role.close()
