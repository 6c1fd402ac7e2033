"""rfaas.py and packaging/setup.sh where little is there; the guard in conftest.py."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parent.parent
EX_UNAVAILABLE = 69  # sysexits.h(3head)

CLI = """
import sys
def main():
    print(sys.argv[1:], sys.flags.isolated, sys.flags.no_site, sys.executable)
    return 7
"""

LEAKS = """
import os, signal, socket, subprocess, threading, time
kept = []
def test_nothing(): pass
def test_process(): kept.append(subprocess.Popen(["sleep", "61"]))
def test_fork(): os.fork() or signal.pause()
def test_grandchild(): subprocess.run(["sh", "-c", "sleep 62 & exit 0"])
def test_family(): subprocess.run(["sh", "-c", "(sleep 63 & wait) & exit 0"])
def test_thread(): threading.Thread(None, time.sleep, "dawdler", (3,), daemon=True).start()
def test_descriptor(): kept.append(os.open("/dev/null", os.O_RDONLY))
def test_socket(): kept.append(socket.socket())
def test_shared(): open("/dev/shm/NAME", "w").close()
def test_late(): kept.append(subprocess.Popen(["sleep", "0.02"]))
"""


def run(
    *command: str | Path, cwd: Path = TREE, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **variables},
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture
def bare_tree(tmp_path: Path) -> Path:
    """A tree as cloned, as far as rfaas.py looks, at a path with a space."""
    tree = tmp_path / "a tree"
    (tree / "rfaas/native").mkdir(parents=True)
    shutil.copy(TREE / "rfaas.py", tree)
    return tree


@pytest.fixture
def built_tree(bare_tree: Path) -> Path:
    """The same with an environment, a native module and a command line that tells what it got."""
    (bare_tree / ".venv/bin").mkdir(parents=True)
    (bare_tree / ".venv/bin/python").symlink_to(sys.executable)
    (bare_tree / f"rfaas/native/_x{EXTENSION_SUFFIXES[0]}").touch()
    (bare_tree / "rfaas/__init__.py").touch()
    (bare_tree / "rfaas/cli.py").write_text(CLI)
    return bare_tree


def ways_to_start(tree: Path) -> list[tuple[str | Path, ...]]:
    """Directly, by sh, by Python, isolated, and through links, one of them relative."""
    folder = tree.parent / "links"
    folder.mkdir()
    (folder / "absolute").symlink_to(tree / "rfaas.py")
    (folder / "relative").symlink_to("../links/absolute")
    (folder / "rfaas").symlink_to("relative")
    return [
        ("./rfaas.py",),
        ("sh", "rfaas.py"),
        ("sh", tree / "rfaas.py"),
        (sys.executable, "rfaas.py"),
        (sys.executable, "-I", tree / "rfaas.py"),
        (folder / "absolute",),
        (folder / "rfaas",),
        (sys.executable, folder / "rfaas"),
    ]


def test_not_built(bare_tree: Path) -> None:
    for command in ways_to_start(bare_tree):
        done = run(*command, "call", cwd=bare_tree)
        assert done.stderr.splitlines() == [
            "rfaas: this tree is not built yet",
            f"hint: run `make build` in {bare_tree}",
        ]
        assert (done.returncode, done.stdout) == (EX_UNAVAILABLE, "")


def test_built_for_another_python(built_tree: Path) -> None:
    module = built_tree / f"rfaas/native/_x{EXTENSION_SUFFIXES[0]}"
    module.rename(module.with_name("_x.cpython-39-x86_64-linux-gnu.so"))
    done = run("./rfaas.py", cwd=built_tree)
    assert done.returncode == EX_UNAVAILABLE
    assert "make build" in done.stderr


def test_python_of_the_environment_is_gone(built_tree: Path) -> None:
    python = built_tree / ".venv/bin/python"
    python.unlink()
    python.symlink_to("/nowhere/python3")
    for command in ("./rfaas.py",), (sys.executable, "rfaas.py"):
        assert run(*command, cwd=built_tree).returncode == EX_UNAVAILABLE


def test_built(built_tree: Path) -> None:
    words = ["call", "two words", "", "*", "$HOME", "--", "-", "'"]
    expected = f"{words} 1 1 {built_tree}/.venv/bin/python\n"
    for command in ways_to_start(built_tree):
        done = run(*command, *words, cwd=built_tree, PYTHONPATH="/nowhere")
        assert (done.stdout.replace("/./", "/"), done.stderr) == (expected, "")
        assert done.returncode == 7


def python_that_answers(folder: Path, answer: str) -> str:
    file = folder / "python"
    file.write_text(f"#!/bin/sh\necho '{answer}'\n")
    file.chmod(0o755)
    return str(file)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("3.9.18 .so", "is Python 3.9.18, and rFaaS needs 3.10 or newer"),
        ("2.7.18 .so", "is Python 2.7.18, and rFaaS needs 3.10 or newer"),
        ("", "cannot run"),
    ],
)
def test_set_up_names_an_unfit_python(tmp_path: Path, answer: str, message: str) -> None:
    (tmp_path / "packaging").mkdir()
    shutil.copy(TREE / "packaging/setup.sh", tmp_path / "packaging")
    python = python_that_answers(tmp_path, answer)
    done = run("packaging/setup.sh", cwd=tmp_path, PYTHON=python)
    assert done.returncode == EX_UNAVAILABLE
    assert message in done.stderr
    assert "make build PYTHON=" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_guard_names_what_tests_leave(tmp_path: Path) -> None:
    name = f"rfaas-leak-{os.getpid()}"
    (tmp_path / "test_leaks.py").write_text(LEAKS.replace("NAME", name))
    shutil.copy(TREE / "tests/conftest.py", tmp_path)
    try:
        done = run(
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--leak-wait-s", "0.1"),
            cwd=tmp_path,
        )
    finally:
        Path("/dev/shm", name).unlink()
    left = dict(re.findall(r"ERROR at teardown of (\w+) .*\nleft behind:\n +(.*)", done.stdout))
    patterns = {
        "test_process": r"process \d+: sleep 61",
        "test_fork": r"process \d+: .*pytest.*",
        "test_grandchild": r"process \d+: sleep 62",
        "test_family": r"process \d+: sh -c .*sleep 63.*",
        "test_thread": r"thread \d+: dawdler",
        "test_descriptor": r"descriptor \d+: /dev/null",
        "test_socket": r"descriptor \d+: socket:\[\d+\]",
        "test_shared": f"shared memory: /dev/shm/{name}",
    }
    assert left.keys() == patterns.keys(), done.stdout
    for test, pattern in patterns.items():
        assert re.fullmatch(pattern, left[test])
