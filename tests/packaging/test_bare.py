"""A node in one command: a packed file copied to a bare machine, and run there.

The machines are minimal Debian trees, made once under build/bare by debootstrap
and entered by chroot.  The worker inside a container comes with containers.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.harness.processes import Child
from tests.packaging.one_file import LIBRARY, TREE, Done, require_private_mounts, run

TREES = TREE / "build/bare"
SITE = """\
[lane]
slots = 7
[[host]]
match = "*"
[host.executor]
cores = 1
resource_manager = "none"
"""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Node:
    """A tree, with one folder of ours in it at /mnt."""

    def __init__(self, tree: Path, folder: Path) -> None:
        self.folder = folder
        script = [
            "set -e",
            f"mount -t proc proc {tree}/proc",
            f"mount -t tmpfs none {tree}/tmp",
            f"mount -t tmpfs none {tree}/root",
            f"mount --bind {folder} {tree}/mnt",
            f'exec chroot {tree} "$@"',
        ]
        self.enter = ["unshare", "-m", "sh", "-c", "\n".join(script), "sh"]
        self.environ = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "RFAAS_RUNTIME_DIR": "/mnt/run",
        }

    def run(self, *command: str, data: bytes = b"") -> Done:
        """Run a command there to its end."""
        return run([*self.enter, *command], data=data, environ=self.environ)

    def start(self, *command: str) -> Child:
        """Start a command there."""
        return Child([*self.enter, *command], self.environ, self.folder / "log")


def tree_with(*packages: str) -> Path:
    """A minimal tree with these packages; made if need be."""
    require_private_mounts()
    if os.geteuid() != 0:
        pytest.skip("a chroot takes root")
    if not shutil.which("debootstrap"):
        pytest.skip("no debootstrap: apt-get install debootstrap")
    tree = TREES / "-".join(("minimal", *packages))
    made = subprocess.run(
        ["unshare", "-m", str(TREE / "tests/packaging/bare_tree.sh"), str(tree), *packages],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(
            f"no tree can be made, offline perhaps: {made.stdout[-300:]}{made.stderr[-300:]}"
        )
    return tree


def pack(program: Path, folder: Path, environ: dict[str, str]) -> None:
    """Put rfaas-site, which carries a configuration, and a library into `folder`."""
    site = folder / "site.toml"
    site.write_text(SITE)
    words = ["pack", "--config", str(site), "-o", str(folder / "rfaas-site")]
    done = run([str(program), *words], environ=environ)
    assert done.status == 0, done.err
    shutil.copy(LIBRARY, folder)


def serve_and_call(node: Node) -> None:
    """What the README's section on copying one file does."""
    role = node.start("/mnt/rfaas-site", "serve", "--role", "executor", "--name", "bare")
    try:
        role.lines.until("executor bare ready")
        address = "unix:/mnt/run/executor-bare.sock"
        call = ("/mnt/rfaas-site", "call", "--executor", address, f"/mnt/{LIBRARY.name}")
        done = node.run(*call, "echo", "-", data=b"from a bare machine")
        assert (done.status, done.out) == (0, b"from a bare machine"), done.err
        shown = node.run("/mnt/rfaas-site", "config", "show").out.decode()
        assert " embedded in rfaas-site" in shown
        role.signal(signal.SIGTERM)
        assert role.wait() == 0, role.stderr
    finally:
        role.close()


def test_machine_with_python_only(program: Path, tmp_path: Path) -> None:
    tree = tree_with("python3")
    assert not (tree / "usr/bin/cc").exists()
    pack(program, tmp_path, {"PATH": os.environ["PATH"], "HOME": str(tmp_path)})
    node = Node(tree, tmp_path)
    if node.run("/mnt/rfaas-site", "--version").status == 69:
        pytest.skip("the tree's Python is another version than the one that runs the tests")
    serve_and_call(node)
    assert node.run("/mnt/rfaas-site", "call", f"/mnt/{LIBRARY.name}", "echo").status == 0


def test_machine_without_python(program: Path, binary: Path, tmp_path: Path) -> None:
    tree = tree_with()
    assert not list((tree / "usr/bin").glob("python*"))
    pack(binary, tmp_path, {"PATH": os.environ["PATH"], "HOME": str(tmp_path)})
    shutil.copy(program, tmp_path)
    node = Node(tree, tmp_path)
    serve_and_call(node)
    # And the zipapp there says what it needs.
    done = node.run("/mnt/rfaas", "--version")
    assert done.status == 69
    assert "rfaas-linux-x86_64, which needs none" in done.err
