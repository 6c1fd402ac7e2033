"""`rfaas demo` as a new user runs it: the real roles, the real pictures, nothing left behind.

That no process is left is seen by the guard in tests/conftest.py, to which orphans come.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from rfaas.bench import demo
from rfaas.bench.picture import landscape
from rfaas.errors import PeerLostError
from tests.bench.png import decoded

TREE = Path(__file__).resolve().parents[2]
TIMES = r"\d+(\.\d)? (ns|us|ms|s)"
STEPS = 12


@pytest.fixture
def scratch() -> Iterator[Path]:
    """The demo's TMPDIR, which must be empty at the end; its name is short for the sockets."""
    with tempfile.TemporaryDirectory(prefix="rfaas-t-") as path:
        yield Path(path)
        assert os.listdir(path) == []


def start(scratch: Path, output: Path, **variables: str) -> subprocess.Popen[str]:
    environ = {name: value for name, value in os.environ.items() if name != "COLORTERM"}
    return subprocess.Popen(
        [TREE / "rfaas.py", "demo", "--output", output],
        env=environ | {"TMPDIR": str(scratch)} | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_until(process: subprocess.Popen[str], text: str) -> None:
    """Read what it says until `text` stands there; a step's line has no end until it is done."""
    assert process.stdout
    said = ""
    while text not in said:
        said += (more := os.read(process.stdout.fileno(), 4096).decode())
        assert more, f"it ended before it said {text!r}: {said}"


def test_demo(scratch: Path, tmp_path: Path) -> None:
    # Configured for a cluster that is not there: the demo has its own.
    with start(
        scratch,
        tmp_path / "new/folder",
        RFAAS_CLIENT_RESOURCE_MANAGER="unix:/nowhere/rm.sock",
        RFAAS_EXECUTOR_CORES="1",
    ) as process:
        said, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")

    steps = re.findall(rf"^ ?(\d+)  \S.* {TIMES}$", said, re.MULTILINE)
    assert [int(step[0]) for step in steps] == list(range(1, STEPS + 1))
    assert len(re.findall(r"^    [ .:=+*#%@-]{50,60}$", said, re.MULTILINE)) > 10, "the thumbnail"
    for row in ("hot .*", "rFaaS, native client", "rFaaS, Python.*", "warm .*", "cold .*"):
        assert re.search(rf"^ *{row} +{TIMES} +{TIMES}$", said, re.MULTILINE), row
    assert "Nothing is left running" in said
    assert "\x1b" not in said, "colours are for terminals"

    files = {file.name: decoded(file.read_bytes()) for file in (tmp_path / "new/folder").iterdir()}
    assert files.keys() == {"picture.png", "thumbnail.png"}
    assert files["picture.png"] == landscape(640, 480)
    assert files["thumbnail.png"][:2] == (128, 96)
    assert len(set(files["thumbnail.png"].rgb)) > 50


@pytest.mark.parametrize(
    ("number", "step"),
    [
        (signal.SIGINT, "a resource manager"),
        (signal.SIGINT, "an executor"),
        (signal.SIGINT, "measure cold"),
        (signal.SIGTERM, "call thumbnail"),
        (signal.SIGHUP, "release the lease"),
    ],
)
def test_interrupted(scratch: Path, tmp_path: Path, number: signal.Signals, step: str) -> None:
    with start(scratch, tmp_path) as process:
        read_until(process, step)
        process.send_signal(number)
        _, errors = process.communicate()
    assert (process.returncode, errors) == (130, "")


def test_output_that_cannot_be_written(scratch: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with start(scratch, file / "folder") as process:
        said, errors = process.communicate()
    assert process.returncode == 2
    assert errors.splitlines() == [
        f"rfaas: cannot write pictures to {file}/folder: Not a directory",
        "hint: name another directory with --output",
    ]
    assert said.endswith("\n")


def test_role_that_does_not_start(scratch: Path) -> None:
    """What it said on its way is in the message."""
    with pytest.raises(PeerLostError, match=r"executor did not start; it said:\n.*cores"):
        demo._Role(str(scratch), "executor", "--node-cores", "0")
    (scratch / "executor.log").unlink()


@pytest.mark.parametrize(
    ("is_terminal", "encoding", "variables", "coloured"),
    [
        (True, "utf-8", {"COLORTERM": "truecolor"}, True),
        (True, "UTF8", {"COLORTERM": "24bit"}, True),
        (False, "utf-8", {"COLORTERM": "truecolor"}, False),
        (True, "ascii", {"COLORTERM": "truecolor"}, False),
        (True, "utf-8", {}, False),
        (True, "utf-8", {"COLORTERM": "truecolor", "NO_COLOR": ""}, False),
    ],
)
def test_colours_are_for_terminals_that_have_them(
    monkeypatch: pytest.MonkeyPatch,
    is_terminal: bool,
    encoding: str,
    variables: dict[str, str],
    coloured: bool,
) -> None:
    out = SimpleNamespace(isatty=lambda: is_terminal, encoding=encoding)
    monkeypatch.setattr(demo, "sys", SimpleNamespace(stdout=out))
    for name in ("COLORTERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    text = "".join(demo._shown(landscape(32, 24)))
    assert ("\x1b[38;2;" in text) == coloured
    assert text.isascii() != coloured
