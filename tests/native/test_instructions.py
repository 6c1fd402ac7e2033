"""The instructions that our code adds to a call over a NIC, on both sides, outside libibverbs.

Counted by callgrind over a NIC of a few lines of C (instructions.c), so the
number is the same on every machine with this compiler.  350 ns on hardware
leave room for some 400.  With an endpoint, which is for those who can wait a little, there is
no such limit, but no surprise either.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "rfaas/native"
SOURCES = (
    "window.c",
    "ring.c",
    "lane.c",
    "fault.c",
    *(path.name for path in NATIVE.glob("verbs*.c")),
)
ADDED_MAX = {"trusted": 400, "endpoint": 800}
# Ours are the files of native/, with what libc's headers inline into them; the rest is
# libibverbs' (headers in infiniband/), the test's own, libc's and the loader's.
OURS = re.compile(r"^\S*(rfaas/native/|/usr/include/x86).*:(?!main|ticks_calibrate|make_|nic_)")
FEW, MANY = 1000, 11_000
LINE = re.compile(r"^\s*([\d,]+) \(\s*[\d.]+%\)\s+(\S.*)$")


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("valgrind") is None:
        pytest.skip("no valgrind; Debian's package is valgrind")
    made = tmp_path_factory.mktemp("instructions") / "instructions"
    sources: list[str | Path] = [Path(__file__).with_name("instructions.c")]
    sources += [NATIVE / name for name in SOURCES]
    flags: list[str | Path] = ["-O3", "-g1", "-fno-plt", f"-I{NATIVE}", "-o", made]
    libraries = ["-lrdmacm", "-libverbs", "-lpthread"]
    done = subprocess.run(
        ["cc", *flags, *sources, *libraries], capture_output=True, text=True, check=False
    )
    if "rdma_cma.h" in done.stderr:
        pytest.skip("no rdma/rdma_cma.h; Debian's package is librdmacm-dev")
    assert done.returncode == 0, done.stderr
    return made


def counted(program: Path, calls: int, size: int, mode: str, folder: Path) -> dict[str, int]:
    """Instructions by function."""
    out = folder / f"callgrind.{calls}"
    tool = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"]
    subprocess.run([*tool, program, str(calls), str(size), mode], capture_output=True, check=True)
    listed = subprocess.run(
        ["callgrind_annotate", "--threshold=100", out], capture_output=True, text=True, check=True
    )
    found: dict[str, int] = {}
    for line in listed.stdout.splitlines():
        if (match := LINE.match(line)) and "PROGRAM TOTALS" not in line:
            found[match[2]] = found.get(match[2], 0) + int(match[1].replace(",", ""))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 4096])
@pytest.mark.parametrize("mode", ADDED_MAX)
def test_instructions_per_call(
    program: Path,
    tmp_path: Path,
    size: int,
    mode: str,
    record_property: Callable[[str, object], None],
) -> None:
    few, many = (counted(program, calls, size, mode, tmp_path) for calls in (FEW, MANY))
    added = {
        name: (count - few.get(name, 0)) / (MANY - FEW)
        for name, count in many.items()
        if OURS.search(name)
    }
    total = sum(added.values())
    for name, each in sorted(added.items(), key=lambda item: -item[1])[:20]:
        print(f"{each:8.1f}  {name}")
    print(f"{total:8.1f}  in all, of a call of {size} bytes, {mode}")
    record_property("instructions_per_call", round(total, 1))
    assert 0 < total < ADDED_MAX[mode]
