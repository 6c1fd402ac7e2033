"""Two versions on one cluster: two one-file programs, of which each names both."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rfaas import __version__
from rfaas.proto.messages import PROTOCOL_VERSION
from tests.harness.processes import Child, until
from tests.packaging.one_file import LIBRARY, TREE, Copy

LATER = "9.0.0"
EX_PROTOCOL = 76
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="session")
def later(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zipapp of a tree whose version and protocol are later ones."""
    tree = tmp_path_factory.mktemp("later") / "tree"
    unwanted = shutil.ignore_patterns(".git", ".venv", "build", "dist", "tests", ".*_cache")
    shutil.copytree(TREE, tree, ignore=unwanted)
    (tree / ".venv").symlink_to(TREE / ".venv")
    (tree / "build").mkdir()
    (tree / "build/dist").symlink_to(TREE / "build/dist")
    for name, old, new in (
        ("rfaas/__init__.py", f'__version__ = "{__version__}"', f'__version__ = "{LATER}"'),
        (
            "rfaas/proto/messages.py",
            f"PROTOCOL_VERSION = {PROTOCOL_VERSION}",
            f"PROTOCOL_VERSION = {PROTOCOL_VERSION + 1}",
        ),
    ):
        text = (tree / name).read_text()
        assert text.count(old) == 1
        (tree / name).write_text(text.replace(old, new))
    output = tree.parent / "rfaas"
    command = [sys.executable, "-I", str(tree / "packaging/build_zipapp.py")]
    done = subprocess.run(
        [*command, "--output", str(output), sys.executable],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return output


def said(version: str, protocol: int, who: str) -> str:
    return rf"{who} \S+ \(rfaas {re.escape(version)}\) speaks (version )?{protocol}\b"


@pytest.mark.parametrize("which", ["later client", "later roles"])
def test_a_client_of_another_version_is_refused_by_both_names(
    program: Path, later: Path, tmp_path: Path, which: str
) -> None:
    ours = (program, __version__, PROTOCOL_VERSION)
    theirs = (later, LATER, PROTOCOL_VERSION + 1)
    client, server = (theirs, ours) if which == "later client" else (ours, theirs)
    for folder in ("server", "client"):
        (tmp_path / folder).mkdir()
    serving, calling = Copy(server[0], tmp_path / "server"), Copy(client[0], tmp_path / "client")
    calling.environ["RFAAS_RUNTIME_DIR"] = serving.environ["RFAAS_RUNTIME_DIR"]
    role = Child(
        [str(serving.path), "serve", "--role", "all"], serving.environ, tmp_path / "serve.log"
    )
    try:
        role.lines.until("executor ")
        done = calling.run("call", str(LIBRARY), "echo", "-", data=b"x")
        assert done.status == EX_PROTOCOL, done.err
        assert re.search(said(*client[1:], "client"), done.err), done.err
        assert re.search(said(*server[1:], "resource-manager"), done.err), done.err
        assert "hint: install the same rfaas on both nodes" in done.err
        # The same version is served all the while.
        assert serving.run("call", str(LIBRARY), "echo", "-", data=b"x").out == b"x"
        role.signal(signal.SIGTERM)
        assert role.wait() == 0, role.stderr
        assert re.search(said(*client[1:], "client"), role.stderr), role.stderr
    finally:
        role.close()


def test_an_executor_of_another_version_is_refused_by_both_names(
    program: Path, later: Path, tmp_path: Path
) -> None:
    for folder in ("manager", "executor"):
        (tmp_path / folder).mkdir()
    managing, joining = Copy(program, tmp_path / "manager"), Copy(later, tmp_path / "executor")
    joining.environ["RFAAS_RUNTIME_DIR"] = managing.environ["RFAAS_RUNTIME_DIR"]
    manager = Child(
        [str(managing.path), "serve", "--role", "resource-manager"],
        managing.environ,
        tmp_path / "manager.log",
    )
    try:
        manager.lines.until("resource manager ready")
        executor = Child(
            [str(joining.path), "serve", "--role", "executor", "--name", "late"],
            joining.environ,
            tmp_path / "executor.log",
        )
        try:
            until(lambda: "hint: " in executor.stderr, "the executor says why it has not joined")
            text = executor.stderr
            assert re.search(said(LATER, PROTOCOL_VERSION + 1, "executor"), text), text
            assert re.search(said(__version__, PROTOCOL_VERSION, "resource-manager"), text), text
            assert "install the same rfaas on both nodes" in text
            executor.signal(signal.SIGTERM)
            assert executor.wait() == 0, executor.stderr
        finally:
            executor.close()
        manager.signal(signal.SIGTERM)
        assert manager.wait() == 0, manager.stderr
    finally:
        manager.close()
