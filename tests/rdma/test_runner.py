"""packaging/softroce/run, seen from outside: status, streams, what is kept, how it ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from tests.harness.processes import PATIENCE_S, Child, descendants, is_alive, until

TREE = Path(__file__).resolve().parents[2]
RUN = TREE / "packaging/softroce/run"
KERNEL = Path(os.environ.get("RFAAS_UML_KERNEL") or TREE / "build/softroce/linux-uml")
Test = TypeVar("Test", bound=Callable[..., object])
EXIT_TIMEOUT, EXIT_MACHINE_FAILED = 124, 125

TOOLS = ("rdma", "rping", "ib_write_lat", "ibv_devinfo")
needs_kernel = pytest.mark.skipif(
    not os.access(KERNEL, os.X_OK)
    or not all(map(shutil.which, TOOLS))
    or "RFAAS_GUEST" in os.environ,
    reason="no kernel for a guest, or no tools: `make softroce`, then `make test-rdma`",
)
pytestmark = [pytest.mark.rdma_guest, needs_kernel]


def with_guest(test: Test) -> Test:
    """What this module's tests are marked with, for those of another."""
    marked: Test = pytest.mark.rdma_guest(needs_kernel(test))
    return marked


def guest(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, RUN, *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
    )


def test_output_errors_and_status_are_the_commands() -> None:
    done = guest("sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 7)


def test_a_signal_that_kills_the_command_shows() -> None:
    assert guest("sh", "-c", "kill -9 $$").returncode == 128 + signal.SIGKILL


def test_much_output_is_whole() -> None:
    done = guest("seq", "200000")
    assert done.stdout == "".join(f"{number}\n" for number in range(1, 200001))


def test_writes_are_thrown_away_but_where_told(tmp_path: Path) -> None:
    kept = tmp_path / "kept here"
    kept.mkdir()
    script = f'echo "$WORD" >"{kept}/file"; echo lost >"{tmp_path}/file"; cat "{tmp_path}/file"'
    word = "a 'word' and $more"
    done = guest("--writable", kept, "--env", f"WORD={word}", "--", "sh", "-c", script)
    assert (done.stdout, done.returncode) == ("lost\n", 0)
    assert (kept / "file").read_text() == f"{word}\n"
    assert not (tmp_path / "file").exists()


def test_processors_and_directory(tmp_path: Path) -> None:
    done = guest("--cpus", "1", "--directory", tmp_path, "--", "sh", "-c", "nproc; pwd")
    assert done.stdout.split() == ["1", str(tmp_path)]


def test_time_is_up() -> None:
    done = guest("--timeout", "3", "--", "sleep", "60")
    assert done.returncode == EXIT_TIMEOUT
    assert "did not end within 3 s" in done.stderr


def test_a_machine_that_fails_shows_its_console() -> None:
    done = guest("--kernel", "/bin/true", "true")
    assert done.returncode == EXIT_MACHINE_FAILED
    assert "ended before the command did" in done.stderr


def test_what_the_command_leaves_running_ends_with_the_machine() -> None:
    done = guest("sh", "-c", "sleep 600 & echo started")
    assert (done.stdout, done.returncode) == ("started\n", 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_runner_takes_the_machine_along(tmp_path: Path, number: int) -> None:
    child = Child(
        [sys.executable, str(RUN), "sh", "-c", "echo running; exec sleep 600"],
        dict(os.environ),
        tmp_path / "log",
    )
    try:
        assert child.lines.next() == "running"
        os.kill(child.pid, number)
        expected = -number if number == signal.SIGKILL else 128 + number
        assert child.wait() == expected
        # What is left of the machine is adopted by this process.
        left = list(descendants(os.getpid()))
        until(lambda: not any(map(is_alive, left)), "the machine is gone")
    finally:
        child.close()
