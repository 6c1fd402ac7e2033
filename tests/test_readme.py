"""The README's commands, run as they stand there, in order.

Fenced blocks are run in a directory that looks like the tree; what they write stays
there.  The conventions:

    sh      one script, stopped by the first error.  A line that begins with `make` is only
            checked to name a target; `./rfaas.py serve` runs until all blocks are done,
            and what follows waits for its ready line
    python  run by the tree's interpreter
    c       written to the file that its first line names: /* mine.c */
    text    shown, not run

A line that ends in `# -> words` prints these words; they are looked for in order.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parent.parent
WHOLE = (TREE / "README.md").read_text()
# tests/packaging/test_bare.py does what this section says: it takes other machines.
README = re.sub(r"^## Copy one file\n.*?(?=^## )", "", WHOLE, flags=re.MULTILINE | re.DOTALL)
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
KINDS = {"sh", "python", "c", "text"}
PYTHON = str(TREE / ".venv/bin/python")
SERVE = "./rfaas.py serve "
PAGES = [
    page for place in (".", "docs", "functions") for page in sorted(TREE.glob(f"{place}/*.md"))
]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with all of the tree in it, whose name is short for sockets."""
    with tempfile.TemporaryDirectory(prefix="rfaas-t-") as path:
        for entry in TREE.iterdir():
            Path(path, entry.name).symlink_to(entry)
        yield Path(path)


@pytest.fixture
def environ(place: Path) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if name[:6] != "RFAAS_"}
    return clean | {
        "HOME": str(place),
        "RFAAS_RUNTIME_DIR": str(place / "run"),
        "RFAAS_STATE_DIR": str(place / "state"),
        "RFAAS_EXECUTOR_CORES": "2",  # the README leases two; lanes need no core of their own
    }


def test_commands(place: Path, environ: dict[str, str]) -> None:
    with ExitStack() as servers:
        for kind, text in BLOCKS:
            match kind:
                case "c":
                    (place / text.split()[1]).write_text(text)
                case "python":
                    check([PYTHON, "-c", text], text, place, environ)
                case "sh":
                    for is_server, lines in groupby(commands(text), lambda s: s.startswith(SERVE)):
                        if is_server:
                            for line in lines:
                                servers.enter_context(served(line, place, environ))
                        else:
                            script = "\n".join(lines)
                            check(["sh", "-euc", script], script, place, environ)


def commands(text: str) -> Iterator[str]:
    """The lines of a block that are to be run."""
    return (line for line in text.splitlines() if line.split()[:1] not in ([], ["make"]))


def check(command: list[str], text: str, place: Path, environ: dict[str, str]) -> None:
    """Run a block and look for what it says that it prints."""
    done = subprocess.run(
        command,
        cwd=place,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{text}\n{done.stderr}"
    said = done.stdout
    for words in re.findall(r"# -> (.*)$", text, re.MULTILINE):
        _, found, said = said.partition(words)
        assert found, f"{words!r} is not in what this printed:\n{text}\n{done.stdout}"


class served:  # noqa: N801 - reads as a function
    """A server of the README, from its ready line until the block ends."""

    def __init__(self, line: str, place: Path, environ: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            shlex.split(line, comments=True),
            cwd=place,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self) -> None:
        assert self._process.stdout
        assert " ready " in self._process.stdout.readline()

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)
        with self._process:
            assert self._process.wait(20) == 0


def test_make_names_targets() -> None:
    makefile = (TREE / "Makefile").read_text()
    named = set(re.findall(r"^make (\S+)|`make (\S+)`", WHOLE, re.MULTILINE))
    targets = {first or second for first, second in named}
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"


def test_every_block_is_of_a_known_kind() -> None:
    assert {kind for kind, _ in BLOCKS} <= KINDS
    assert README.count("```") == 2 * len(BLOCKS)
    assert WHOLE != README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    headings = {slug(found) for found in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = link.partition("#")
        if "://" in link:
            continue
        if file:
            assert (page.parent / file).exists(), link
        else:
            assert anchor in headings, link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    """`roles/executor.py` is below rfaas/; what stands in a directory's table is below that."""
    named = set(
        re.findall(r"`([\w./-]+/[\w.-]*\.(?:py|pyx|c|h|md|toml|sh)|[\w./-]+/)`", page.read_text())
    )
    wanted = {name for name in named if "NAME" not in name and not name.startswith(("/", "./"))}
    places = (TREE, TREE / "rfaas", page.parent)
    assert [name for name in wanted if not any((at / name).exists() for at in places)] == []


def slug(heading: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_interpreter_is_the_trees() -> None:
    """The README says that it finds the package from anywhere."""
    done = subprocess.run(
        [PYTHON, "-c", "import rfaas; print(rfaas.__file__)"],
        cwd="/",
        env={},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()).samefile(TREE / "rfaas/__init__.py")
    assert Path(sys.prefix).samefile(TREE / ".venv")
