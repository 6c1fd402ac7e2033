"""`rfaas bench faults`: what it reports, and that it finds what is left."""

from __future__ import annotations

import ctypes
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from rfaas.bench import faults
from rfaas.errors import InternalError
from tests.bench.test_command import STATS, bench, report
from tests.e2e.conftest import site
from tests.harness import images, registry
from tests.harness.processes import until
from tests.harness.site import Site

__all__ = ["site"]

NAME = "bench-test-0123"
PR_SET_NAME = 15


def started(name: str) -> int:
    """A process of that name that stays; its number."""
    told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode(), 0, 0, 0)
        os.write(tell, b"x")
        while True:
            signal.pause()
    assert os.read(told, 1) == b"x"
    os.close(told)
    os.close(tell)
    return pid


@pytest.fixture
def processes() -> Iterator[list[int]]:
    """As many as a function leaves behind, and its worker."""
    made = [started(NAME) for _ in range(faults.DAEMONS + 1)]
    yield made
    for pid in made:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("level", faults.LEVELS)
def test_report(level: str, site: Site, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """The best of a few is what was asked for, on a busy machine as well."""
    flags: tuple[str, ...] = ()
    if level == "bubblewrap":
        registry.require(pytestconfig, "bwrap")
    elif level == "container":
        registry.require(pytestconfig, "runc")
        site.set(container__engine="runc")
        image = images.Layout(tmp_path / "tiny", [images.layer(images.system_libraries())])
        flags = ("--image", image.reference)
    rounds = 3
    command = ("faults", "--isolation", level, "--calls", str(rounds), *flags)
    found = report(*command, **site.environ)
    assert (found["benchmark"], found["rounds"]) == ("faults", rounds)
    assert found["asked_ms"] == {"told_of_crash": 50, "told_of_deadline": 100, "gone": 100}
    levels = found["levels"]
    assert isinstance(levels, list)
    (one,) = levels
    assert (one["isolation"], one["transport"], one["left"]) == (level, "shm", 0)
    assert one["processes"] == rounds * len(faults.FAULTS) * (faults.DAEMONS + 1)
    for fault in faults.FAULTS:
        assert set(one[fault]) == {"told_ms", "gone_ms", "free_ms"}
        for figures in one[fault].values():
            assert set(figures) == STATS
            assert figures["min"] <= figures["median"] <= figures["p99"]
            assert figures["p99"] > 0
        told = "told_of_deadline" if fault == "deadline" else "told_of_crash"
        assert one[fault]["told_ms"]["min"] <= faults.ASKED_MS[told]
        assert one[fault]["gone_ms"]["min"] <= faults.ASKED_MS["gone"]


def test_table_of_all_levels() -> None:
    done = bench("faults", "--calls", "1")
    assert (done.returncode, done.stderr) == (0, "")
    for words in (*faults.LEVELS, "deadline  gone_ms", "left                0"):
        assert words in done.stdout
    assert re.search(
        r"^container\n  refused +no image is named: --image$", done.stdout, re.MULTILINE
    )


def test_what_is_left_is_counted_and_killed(
    processes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One ends, as it should; the others do not, and one more comes late."""
    monkeypatch.setattr(faults, "GONE_TIMEOUT_S", 0.1)
    tree = faults.Tree(NAME)
    assert tree.pids == set(processes)
    tree.watch()
    os.kill(processes[0], signal.SIGKILL)
    late = started(NAME)
    processes.append(late)
    assert tree.gone_ns() > 0
    assert tree.end() == faults.DAEMONS + 1
    until(lambda: not faults.find(NAME), "the end of all")


def test_who_cannot_be_found_is_no_measurement() -> None:
    with pytest.raises(InternalError, match="3 daemons, 0 processes are found"):
        faults.Tree("nobody-has-that")


def test_another_executor_is_not_asked() -> None:
    done = bench("faults", "--executor", "unix:/nowhere")
    assert done.returncode == 2
    assert "faults are measured on a private executor, not on unix:/nowhere" in done.stderr
