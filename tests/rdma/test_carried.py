"""Calls over RDMA by the binary, on a machine that has no rdma-core: it brings its own."""

from __future__ import annotations

import json
import random
import re
import signal
from pathlib import Path

import pytest

from tests.harness.no_rdma_core import MACHINES, copy_in_a_folder_with_a_colon, require_carried
from tests.harness.processes import Child
from tests.harness.rdma import End
from tests.packaging.one_file import LIBRARY, TREE, Copy, in_mounts

pytestmark = [pytest.mark.rdma, pytest.mark.timeout(300)]
Ends = tuple[End, End]

PROGRAM = TREE / "dist/rfaas-linux-x86_64"


@pytest.fixture
def copy(rdma_ends: Ends, tmp_path: Path) -> Copy:
    if not PROGRAM.exists():
        pytest.skip(f"no {PROGRAM.relative_to(TREE)}: make dist-binary")
    require_carried(PROGRAM)
    copy = copy_in_a_folder_with_a_colon(PROGRAM, tmp_path)
    copy.environ["RFAAS_LEASE_ISOLATION"] = "process"
    return copy


@pytest.mark.parametrize("machine", MACHINES)
def test_devices_are_found(copy: Copy, rdma_ends: Ends, machine: str) -> None:
    done = copy.run_with_mounts(MACHINES[machine], "devices", "--json")
    assert (done.status, done.err) == (0, "")
    found = json.loads(done.out)
    assert re.fullmatch(r"carried rdma-core \d+\.\d+", found["rdma_core"])
    devices = {device["name"]: device for device in found["devices"]}
    for end in rdma_ends:
        assert devices[end.device]["limits"]["inline_bytes_max"] > 0


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("endpoint", ["auto", "always"])
def test_serve_and_call(
    copy: Copy, rdma_ends: Ends, seed: int, machine: str, endpoint: str
) -> None:
    """Executor, worker, endpoint and client: links and lanes over RDMA."""
    client, server = rdma_ends
    data = random.Random(seed).randbytes(50_000)
    here = ("--address", f"verbs:{server.address}:0", "--device", server.device)
    serve = ("serve", "--role", "executor", "--resource-manager", "none", *here)
    executor = Child(
        [*in_mounts(MACHINES[machine]), str(copy.path), *serve],
        copy.environ | {"RFAAS_EXECUTOR_ENDPOINT": endpoint},
        copy.folder / "log",
    )
    try:
        address = executor.lines.until("executor ").partition("--executor ")[2].split()[0]
        flags = (
            "--executor",
            address,
            "--device",
            client.device,
            "--transport",
            "verbs",
            "--slot-bytes",
            "64KiB",
        )
        call = ("call", *flags, "--repeat", "20", str(LIBRARY), "echo", "-")
        done = copy.run_with_mounts(MACHINES[machine], *call, data=data)
        assert (done.status, done.out, done.err) == (0, data, ""), executor.stderr
        executor.signal(signal.SIGTERM)
        assert executor.wait() == 0, executor.stderr
    finally:
        executor.close()
