"""The zipapp does, from a directory of its own, what the tree does."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
import zipfile
from pathlib import Path

import pytest

from tests.harness.processes import Child
from tests.packaging.one_file import LIBRARY, PYTHON, TREE, Copy, run


def test_call_with_a_private_executor(copy: Copy, seed: int) -> None:
    data = random.Random(seed).randbytes(200_000)
    done = copy.run("call", str(LIBRARY), "echo", "-", data=data)
    assert (done.status, done.err) == (0, "")
    assert done.out == data


def test_serve_and_call(copy: Copy) -> None:
    role = Child(
        [str(copy.path), "serve", "--role", "all"], copy.environ, copy.folder / "serve.log"
    )
    try:
        role.lines.until("executor ")
        done = copy.run("call", str(LIBRARY), "echo", "-", data=b"over there", environ={})
        assert (done.status, done.out) == (0, b"over there"), done.err
        status = copy.run("nodes", "--json")
        assert status.status == 0, status.err
        role.signal(signal.SIGTERM)
        assert role.wait() == 0
    finally:
        role.close()


def test_runs_as_an_argument_of_python(copy: Copy) -> None:
    done = run([PYTHON, str(copy.path), "--version"], environ=copy.environ)
    assert (done.status, done.out[:6]) == (0, b"rfaas "), done.err


def test_runs_by_a_relative_name_and_through_a_link(copy: Copy) -> None:
    link = copy.folder / "linked"
    link.symlink_to("rfaas")
    script = f"cd {copy.folder} && ./rfaas --version && sh rfaas --version && ./linked --version"
    done = run(["sh", "-c", script], environ=copy.environ)
    assert (done.status, done.out.count(b"rfaas ")) == (0, 3), done.err
    environ = copy.environ | {"PATH": f"{copy.folder}:{copy.environ['PATH']}"}
    assert run(["sh", "-c", "rfaas --version"], environ=environ).status == 0


def test_the_environment_of_the_user_has_no_part_in_it(copy: Copy) -> None:
    hostile = copy.folder / "hostile"
    hostile.mkdir()
    for name in ("argparse", "socket", "msgpack", "sitecustomize"):
        (hostile / f"{name}.py").write_text("raise SystemExit('not isolated')\n")
    environ = {"PYTHONPATH": str(hostile), "PYTHONSTARTUP": str(hostile / "socket.py")}
    done = copy.run("call", str(LIBRARY), "echo", "-", data=b"x", environ=environ)
    assert (done.status, done.out) == (0, b"x"), done.err


def test_leaves_nothing_in_home(copy: Copy) -> None:
    copy.run("call", str(LIBRARY), "echo")
    assert list(copy.home.iterdir()) == []


def test_goes_on_when_its_file_is_replaced(copy: Copy, program: Path) -> None:
    """An upgrade copies over the file of a running role, in place."""
    role = Child(
        [str(copy.path), "serve", "--role", "executor", "--resource-manager", "none"],
        copy.environ,
        copy.folder / "serve.log",
    )
    try:
        role.lines.until("executor ")
        size = copy.path.stat().st_size
        with copy.path.open("r+b") as file:
            file.write(bytes(size))
        client_folder = copy.folder / "client"
        client_folder.mkdir()
        client = Copy(program, client_folder)
        environ = {"RFAAS_RUNTIME_DIR": copy.environ["RFAAS_RUNTIME_DIR"]}
        (socket,) = (copy.folder / "run").glob("executor-*.sock")
        flags = ("--executor", f"unix:{socket}")
        done = client.run("call", *flags, str(LIBRARY), "echo", "-", data=b"still", environ=environ)
        assert (done.status, done.out) == (0, b"still"), done.err
        role.signal(signal.SIGINT)
        assert role.wait() == 0, role.stderr
    finally:
        role.close()


def test_is_a_zip_that_says_what_it_carries(program: Path) -> None:
    with zipfile.ZipFile(program) as archive:
        assert archive.testzip() is None
        names = set(archive.namelist())
        stored = {info.filename for info in archive.infolist() if not info.compress_type}
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    assert f"{tag}/rfaas/cli.pyc" in stored
    assert {"LICENSE", "etc/rfaas.toml", "rfaas/admin/pack.py"} <= names - stored
    for carried in ("msgpack", "msgspec"):
        assert any(name.startswith(f"licenses/{carried}-") for name in names)
    natives = {name.rpartition("/")[2] for name in names if name.endswith(".so")}
    sources = {file.stem for file in (TREE / "rfaas/native").glob("_*.pyx")} - {"_wire"}  # tests'
    assert {f"{source}.so" for source in sources} <= natives
    assert os.access(program, os.X_OK)


def test_carries_pyverbs_for_nodes_without(copy: Copy) -> None:
    """The node's own is preferred; where there is none, the carried one."""
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    with zipfile.ZipFile(copy.path) as archive:
        if f"{tag}/pyverbs/qp.so" not in archive.namelist():
            pytest.skip("this machine has no python3-pyverbs for the Python that runs the tests")
        assert any(re.match("licenses/pyverbs-[0-9.]+/copyright", n) for n in archive.namelist())
    own = "/usr/lib/python3/dist-packages"
    for mounts, place in (("true", own), (f"mount -t tmpfs none {own}", str(copy.path))):
        done = copy.run_with_mounts(mounts, "doctor", "--json")
        assert json.loads(done.out)["facts"]["pyverbs"] == f"{place}/pyverbs"
