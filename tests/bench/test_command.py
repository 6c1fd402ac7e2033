"""`rfaas bench`: each benchmark runs and reports what it promises; no figure is judged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from rfaas.bench import leases
from tests.harness.rdma import End

RFAAS = Path(__file__).resolve().parents[2] / "rfaas.py"
STATS = {"min", "median", "p99"}


def bench(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [str(RFAAS), "bench", "--executor", "private", *arguments]
    return subprocess.run(
        command,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def report(*arguments: str, **environ: str) -> dict[str, object]:
    done = bench(*arguments, "--json", **environ)
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("size", ["1", "64", "104", "105", "4096"])
def test_hot(size: str) -> None:
    found = report("hot", "--size", size, "--calls", "400")
    assert found["transport"] == "shm"
    assert found["size_bytes"] == int(size)
    assert found["calls"] == 400
    for key in ("raw_rtt_ns", "hot_rtt_ns", "python_rtt_ns"):
        figures = found[key]
        assert isinstance(figures, dict)
        assert set(figures) == STATS
        assert 0 < figures["min"] <= figures["median"] <= figures["p99"]
    assert {"overhead_ns", "python_overhead_ns"} <= set(found)


@pytest.mark.rdma
def test_warm_over_verbs(rdma_ends: tuple[End, End]) -> None:
    found = report("warm", "--transport", "verbs", "--device", rdma_ends[0].device, "--calls", "5")
    assert (found["transport"], found["calls"]) == ("verbs", 5)
    assert {"raw_rtt_ns", "warm_rtt_ns", "python_rtt_ns", "ratio"} <= set(found)


def test_warm() -> None:
    assert {"raw_rtt_ns", "warm_rtt_ns", "python_rtt_ns"} <= set(report("warm", "--calls", "20"))


CLIENTS = {"request", "connect", "start_worker", "open_lanes", "first_call", "link"}
NODES = {"node.open", "node.wake", "node.reply"}
FORKED = {"worker.confine", "worker.read_functions", "worker.load", "worker.start_lanes"}
KEPT = {"worker.engine", "worker.confine", "worker.load", "worker.start_lanes"}


@pytest.mark.parametrize("pool", ["0", "1"])
@pytest.mark.parametrize(
    ("level", "workers"),
    [("none", FORKED), ("process", FORKED), ("sandbox", FORKED), ("bubblewrap", KEPT)],
)
def test_cold(level: str, workers: set[str], pool: str) -> None:
    """Each step by its name, at the level that was asked for; with and without waiting workers."""
    if level == "bubblewrap" and shutil.which("bwrap") is None:
        pytest.skip("bwrap is missing: apt-get install bubblewrap")
    found = report("cold", "--calls", "2", "--isolation", level, RFAAS_SANDBOX_POOL=pool)
    assert (found["isolation"], found["rounds"], found["pause_ms"]) == (level, 2, 0)
    assert_stats(found["total_ms"])
    steps = found["steps_ms"]
    assert isinstance(steps, dict)
    begun = set(steps) & {"node.fork", "node.hand_over"}  # one waits, if it was there in time
    assert begun
    if pool == "0" or level == "bubblewrap":
        assert begun == {"node.fork"}
    assert set(steps) - begun == CLIENTS | NODES | workers
    for figures in steps.values():
        assert_stats(figures)


def assert_stats(figures: object) -> None:
    assert isinstance(figures, dict)
    assert set(figures) == STATS
    assert 0 < figures["min"] <= figures["median"] <= figures["p99"]


def test_throughput() -> None:
    found = report("throughput", "--calls", "5000", "--inflight", "3")
    assert found["inflight"] == 3
    assert isinstance(found["calls_per_s"], dict)
    assert set(found["calls_per_s"]) == {"native", "python", "python_submit"}


def test_leases() -> None:
    found = report("leases", "--clients", "4", "--nodes", "2", "--calls", "40")
    assert (found["clients"], found["nodes"], found["pairs"]) == (4, 2, 40)
    for key in ("pairs_per_s", "p50_ms", "p99_ms", "pair_p99_ms", "idle_grant_ms"):
        figure = found[key]
        assert isinstance(figure, float | int)
        assert figure > 0


def test_the_ledger_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "GRANTS_MAX", 200)
    rows = leases.ledger((1, 20))["nodes"]
    assert isinstance(rows, list)
    assert [(row["nodes"], row["grants"]) for row in rows] == [(1, 64), (20, 200)]
    assert all(row["grants_per_s"] > 0 for row in rows)


def test_table() -> None:
    done = bench("hot", "--calls", "200")
    assert (done.returncode, done.stderr) == (0, "")
    assert "hot_rtt_ns" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["hot", "--size", "0"], "--size: value is out of bounds (0), 1 to 1073741824 is allowed"),
        (["warm", "--size", "105"], "--size: value is out of bounds (105), 1 to 104 is allowed"),
        (
            ["hot", "--calls", "0"],
            "--calls: value is out of bounds (0), 1 to 2147483648 is allowed",
        ),
        (
            ["throughput", "--inflight", "4096"],
            "--inflight: value is out of bounds (4096), 1 to 4095",
        ),
        (
            ["cold", "--pause-ms", "-1"],
            "--pause-ms: value is out of bounds (-1), 0 to 60000 is allowed",
        ),
        (
            ["cold", "--pause-ms", "60001"],
            "--pause-ms: value is out of bounds (60001), 0 to 60000 is allowed",
        ),
    ],
)
def test_bounds(arguments: list[str], text: str) -> None:
    done = bench(*arguments)
    assert done.returncode == 2
    assert f"rfaas: {text}" in done.stderr
