"""`rfaas config`, as a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parent.parent

SITE = """
[lane]
slots = 32
[[host]]
match = "gpu-*"
[host.lane]
slots = 64
"""


def rfaas(*arguments: str | Path, home: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RFAAS_")}
    clean |= {"HOME": str(home), "XDG_CONFIG_HOME": str(home)}
    return subprocess.run(
        [sys.executable, TREE / "rfaas.py", *arguments],
        env=clean | environ,
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def site(tmp_path: Path) -> Path:
    file = tmp_path / "site.toml"
    file.write_text(SITE)
    return file


def test_show_names_every_origin(tmp_path: Path, site: Path) -> None:
    run = rfaas(
        *("config", "show", "--config", site, "--set", "lease.cores=2", "--json"),
        home=tmp_path,
        RFAAS_LOG_LEVEL="debug",
    )
    assert (run.returncode, run.stderr) == (0, "")
    rows = json.loads(run.stdout)
    assert rows["lane.slots"] == {"value": 32, "origin": f"file {site}"}
    assert rows["lease.cores"] == {"value": 2, "origin": "flag"}
    assert rows["log.level"] == {"value": "debug", "origin": "environment RFAAS_LOG_LEVEL"}
    assert rows["lane.transport"] == {"value": "auto", "origin": "default"}


def test_show_for_another_host(tmp_path: Path, site: Path) -> None:
    run = rfaas("config", "show", "--config", site, "--host", "gpu-7", home=tmp_path)
    assert run.returncode == 0
    (line,) = (line for line in run.stdout.splitlines() if line.startswith("lane.slots "))
    assert line.split(maxsplit=2)[1:] == ["64", f'file {site}, host "gpu-*"']
    assert not run.stdout.endswith("\n\n")


def test_check_says_what_it_read(tmp_path: Path, site: Path) -> None:
    run = rfaas("config", "check", "--config", site, home=tmp_path)
    assert (run.returncode, run.stdout, run.stderr) == (0, f"OK: file {site}\n", "")
    run = rfaas("config", "check", home=tmp_path)
    assert (run.returncode, run.stdout) == (0, "OK: no file is read, defaults hold\n")


def test_check_says_every_fault(tmp_path: Path, site: Path) -> None:
    site.write_text("lane.slots = 0\nlane.slot = 1\n")
    run = rfaas("config", "check", "--config", site, home=tmp_path)
    assert (run.returncode, run.stdout) == (78, "")
    assert run.stderr.splitlines() == [
        f"rfaas: {site}: lane.slots: value is too small (0), at least 1 is required",
        f"rfaas: {site}: lane.slot: unknown key",
        "hint: did you mean slots, slot_bytes?",
    ]
    run = rfaas("config", "check", "--config", site, "--json", home=tmp_path)
    assert run.returncode == 78
    report = json.loads(run.stdout)
    assert not report["ok"]
    assert [fault["hint"] for fault in report["faults"]] == [
        "",
        "did you mean slots, slot_bytes?",
    ]


def test_check_looks_at_what_follows(tmp_path: Path) -> None:
    """A directory of a long name makes addresses that no socket takes."""
    runtime = f"/tmp/{'a' * 100}"
    run = rfaas("config", "check", home=tmp_path, RFAAS_RUNTIME_DIR=runtime)
    assert run.returncode == 78
    assert run.stderr.startswith(
        "rfaas: resource_manager.address (default): socket path is too long"
    )
    assert "executor.address (default): " in run.stderr
    assert rfaas("config", "show", home=tmp_path, RFAAS_RUNTIME_DIR=runtime).returncode == 0


def test_default_helps_where_all_is_broken(tmp_path: Path, site: Path) -> None:
    site.write_text("nonsense")
    run = rfaas("config", "default", home=tmp_path, RFAAS_CONFIG=str(site), RFAAS_LANE_SLOTS="x")
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == (TREE / "etc/rfaas.toml").read_text()
