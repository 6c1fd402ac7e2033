"""Neither end of a ring sleeps through what the other says: see race.c."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parent.parent / "rfaas/native"
CALLS = 20_000
HANG_S = 50  # a call takes microseconds; one that is not heard of takes for ever


@pytest.fixture(scope="module")
def race(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, compiled from race.c and the files that native modules are made of."""
    program = tmp_path_factory.mktemp("race") / "race"
    sources = [
        HERE / "race.c",
        *(NATIVE / name for name in ("ring.c", "lane.c", "fault.c", "window.c")),
    ]
    compiler = os.environ.get("CC", "cc")
    flags = ["-O3", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}", "-pthread"]
    subprocess.run([compiler, *flags, "-o", str(program), *map(str, sources)], check=True)
    return program


@pytest.mark.parametrize("who", ["client", "worker", "both", "pipelined"])
def test_no_wake_up_is_lost(race: Path, seed: int, who: str) -> None:
    run = subprocess.run(
        [race, who, str(CALLS), str(seed)],
        check=False,
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert run.returncode == 0, run.stderr
    waits, wakeups = (int(word) for word in run.stdout.split() if word.isdigit())
    assert waits > 0
    assert (wakeups > 0) == (who != "client")
