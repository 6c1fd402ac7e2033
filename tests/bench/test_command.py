"""`rfaas bench`: each benchmark runs and reports what it promises; no figure is judged."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from rfaas.bench import leases

RFAAS = Path(__file__).resolve().parents[2] / "rfaas.py"
STATS = {"min", "median", "p99"}


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(RFAAS), "bench", "--executor", "private", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


def report(*arguments: str) -> dict[str, object]:
    done = bench(*arguments, "--json")
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


def test_warm_and_cold() -> None:
    assert {"raw_rtt_ns", "warm_rtt_ns", "python_rtt_ns"} <= set(report("warm", "--calls", "20"))
    found = report("cold", "--calls", "2")
    assert isinstance(found["steps_ms"], dict)
    assert {"request", "connect", "start_worker", "first_call"} <= set(found["steps_ms"])


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
    ],
)
def test_bounds(arguments: list[str], text: str) -> None:
    done = bench(*arguments)
    assert done.returncode == 2
    assert f"rfaas: {text}" in done.stderr
