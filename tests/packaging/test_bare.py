"""The README's section on copying one file, done as it stands there, with bare machines.

The node is a minimal Debian tree, made once under build/bare by debootstrap: with Python
and nothing else, without, and without inside a container of runc's.  `scp` and `ssh` are
stand-ins that put files into the tree and run commands in it.  What the commands run on
is that tree and the file alone: no compiler, nothing of this repository.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

from tests.harness.no_rdma_core import carries_rdma_core
from tests.harness.processes import Child
from tests.packaging.one_file import LIBRARY, TREE, require_private_mounts, run

TREES = TREE / "build/bare"
SECTION = re.search(
    r"^## Copy one file\n.*?^```sh\n(.*?)^```$",
    (TREE / "README.md").read_text(),
    re.MULTILINE | re.DOTALL,
)
PLAIN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C"}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SCP = """#!/bin/sh
# scp FILE... HOST:
for host in "$@"; do :; done
[ "$host" = node: ]
while [ $# -gt 1 ]; do cp "$1" @HOME@ && shift || exit; done
"""

# Everything that a command sees is of its own mounts, but for @HOME@, @RUN@ and /sys.  Its root
# is no chroot's: in one, no user namespace can be made, and so no sandbox.
SSH_TREE = """#!/bin/sh
# ssh HOST COMMAND...
shift
exec unshare -m sh -euc '
mount --bind @TREE@ @TREE@
cd @TREE@
mount -t proc proc proc
mount -t tmpfs tmpfs tmp
mount --rbind /sys sys
mount --bind @HOME@ root
mount --bind @RUN@ run
pivot_root . mnt
exec env -i @PLAIN@ chroot . sh -c "umount -l /mnt && cd && exec $*"
' sh "$@"
"""

# The role is the container's first process, as in an image; whoever calls comes in beside it.
# The container is the sandbox: no other one can be made in it.
SSH_CONTAINER = """#!/bin/sh
shift
case "$*" in
*" serve "*) exec runc --root @RUNC@ run --bundle @BUNDLE@ @NAME@ ;;
*) exec runc --root @RUNC@ exec --cwd /root --env RFAAS_LEASE_ISOLATION=process @NAME@ "$@" ;;
esac
"""


class Node:
    """A bare machine, and the folder of ours where the README's commands are typed."""

    def __init__(self, tree: Path, here: Path, program: Path) -> None:
        self.tree = tree
        self.program = program
        self.here = here
        self.home = here / "home"
        self.run = here / "run"
        for folder in ("home", "run", "bin", "dist", "functions"):
            (here / folder).mkdir()
        (here / "dist/rfaas").symlink_to(program)
        (here / "functions" / LIBRARY.name).symlink_to(LIBRARY)
        self.stand_in("scp", SCP)
        # Whoever types these has a Python; the node has what it has.
        self.environ = os.environ | {"HOME": str(here), "PATH": f"{here}/bin:{os.environ['PATH']}"}

    def stand_in(self, name: str, script: str, **more: str) -> None:
        """Put a command of that name where the README's are looked for."""
        plain = " ".join(f"{key}={value}" for key, value in PLAIN.items())
        known = {"HOME": self.home, "RUN": self.run, "TREE": self.tree, "PLAIN": plain} | more
        for mark, value in known.items():
            script = script.replace(f"@{mark}@", str(value))
        file = self.here / "bin" / name
        file.write_text(script)
        file.chmod(0o755)


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
    assert not list((tree / "usr/bin").glob("*cc*"))
    return tree


def do_what_the_readme_says(node: Node) -> None:
    """Its lines in order: the server until the last of them is done."""
    assert SECTION
    lines = [line for line in SECTION[1].splitlines() if line]
    servers = []
    done = ""
    try:
        for serves, some in groupby(lines, lambda line: " serve " in line):
            text = "\n".join(some)
            if serves:
                command = shlex.split(text, comments=True)
                command[0] = str(node.here / "bin" / command[0])
                servers.append(Child(command, node.environ, node.here / "log"))
                servers[-1].lines.until("executor ")
                continue
            ran = subprocess.run(
                ["sh", "-euc", text],
                cwd=node.here,
                env=node.environ,
                capture_output=True,
                text=True,
                check=False,
            )
            log = (node.here / "log").read_text() if servers else ""
            assert ran.returncode == 0, f"{text}\n{ran.stderr}{log}"
            done += ran.stdout
            for words in re.findall(r"# -> (.*)$", text, re.MULTILINE):
                assert words in ran.stdout
        assert "rfaas-site: " in done
        (server,) = servers
        shown = ssh(node, "./rfaas-site", "config", "show")
        assert "embedded in rfaas-site" in shown
        # Without libibverbs everything but verbs works, as was seen; who wants verbs is told how,
        # but for the binary's user, who has what it carries.
        said = ssh(node, "./rfaas-site", "doctor")
        libraries = json.loads(ssh(node, "./rfaas-site", "version", "--json"))["rdma_core"]
        if carries_rdma_core(node.program):
            version = libraries["libibverbs.so.1"]["version"]
            assert {one["origin"] for one in libraries.values()} == {"carried"}
            assert f"librdmacm.so.1 load: carried rdma-core {version}" in said
        else:
            assert set(libraries.values()) == {None}
            assert "apt-get install libibverbs1 librdmacm1" in said
        server.signal(signal.SIGTERM)
        assert server.wait() == 0, server.stderr
    finally:
        for server in servers:
            server.close()


def ssh(node: Node, *command: str) -> str:
    """What a command prints on the node."""
    done = run([str(node.here / "bin/ssh"), "node", *command], environ=node.environ)
    assert done.status == 0, done.err
    return done.out.decode()


def test_machine_with_python_only(program: Path, tmp_path: Path) -> None:
    tree = tree_with("python3")
    node = Node(tree, tmp_path, program)
    node.stand_in("ssh", SSH_TREE)
    shutil.copy(program, node.home / "probe")
    done = run([str(tmp_path / "bin/ssh"), "node", "./probe", "--version"], environ=node.environ)
    if done.status == 69:
        pytest.skip("the tree's Python is another version than the one that runs the tests")
    do_what_the_readme_says(node)


def test_machine_without_python(program: Path, binary: Path, tmp_path: Path) -> None:
    tree = tree_with()
    assert not list((tree / "usr/bin").glob("python*"))
    node = Node(tree, tmp_path, binary)
    node.stand_in("ssh", SSH_TREE)
    do_what_the_readme_says(node)
    # And the zipapp there says what it needs.
    shutil.copy(program, node.home / "probe")
    done = run([str(tmp_path / "bin/ssh"), "node", "./probe", "--version"], environ=node.environ)
    assert done.status == 69
    assert "rfaas-linux-x86_64, which needs none" in done.err


@pytest.fixture
def container(tmp_path: Path) -> Iterator[str]:
    """The name of a container of runc's; gone afterwards."""
    if not shutil.which("runc"):
        pytest.skip("no runc: apt-get install runc")
    name = f"rfaas-test-{os.getpid()}"
    yield name
    command = ["runc", "--root", str(tmp_path / "runc"), "delete", "--force", name]
    subprocess.run(command, capture_output=True, check=False)


def test_container(binary: Path, tmp_path: Path, container: str) -> None:
    """The file, mounted into an image that has no Python, is what the container runs."""
    tree = tree_with()
    node = Node(tree, tmp_path, binary)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    subprocess.run(["runc", "spec", "--bundle", str(bundle)], check=True)
    file = bundle / "config.json"
    spec = json.loads(file.read_text())
    spec["root"] = {"path": str(tree), "readonly": True}
    spec["process"] |= {
        "terminal": False,
        "args": ["./rfaas-site", "serve", "--role", "executor"],
        "cwd": "/root",
        "env": [f"{key}={value}" for key, value in PLAIN.items()],
        "noNewPrivileges": True,
    }
    spec["mounts"] += [
        {"destination": path, "type": "bind", "source": str(source), "options": ["rbind", "rw"]}
        for path, source in (("/root", node.home), ("/run", node.run))
    ]
    spec["mounts"].append({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"})
    file.write_text(json.dumps(spec))
    more = {"RUNC": str(tmp_path / "runc"), "BUNDLE": str(bundle), "NAME": container}
    node.stand_in("ssh", SSH_CONTAINER, **more)
    do_what_the_readme_says(node)
