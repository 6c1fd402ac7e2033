"""Two hosts with a device each: a cable is cut in mid-call, and mended; a device comes and goes."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness.gate import Gate
from tests.harness.processes import Child, until
from tests.harness.rdma import Host
from tests.harness.site import Site

pytestmark = pytest.mark.rdma_hosts
Hosts = tuple[Host, Host]
CALLS = 4

CLIENT = """
held, shipped, gate = sys.argv[1:]
session = rfaas.connect()
lease = session.lease(library=held, cores=1)
futures = [lease.submit("hold", gate.encode()) for _ in range(4)]
say("begun")
for future in futures:
    say("failed", repr(str(future.exception())))
lease.close()
while True:
    try:
        with session.lease(library=shipped, cores=1) as lease:
            say("again", lease.call("echo", b"x").tobytes())
        break
    except rfaas.RfaasError as error:
        say("not yet", repr(str(error)))
session.close()
"""


def served(site: Site, host: Host, role: str, *flags: str) -> tuple[Child, str]:
    """A role on a host that is ready, and where it listens."""
    flags = ("--address", "verbs:*:0", "--device", host.end.device, *flags)
    child = site.start_unready(role, *flags, prefix=host.command())
    line = child.lines.next() or child.stderr
    found = re.search(r"ready on (\S+?)[,;] ", line)
    assert found, line
    return child, found[1]


@contextmanager
def lost(host: Host) -> Iterator[None]:
    """Whatever leaves a host gets lost, as on a cable that is cut behind the next switch."""
    queue, rest = host.command("tc", "qdisc"), ["dev", host.end.netdev, "root"]
    subprocess.run([*queue, "add", *rest, "netem", "loss", "100%"], check=True)
    try:
        yield
    finally:
        subprocess.run([*queue, "delete", *rest], check=True)


def test_a_cable_that_is_cut_in_mid_call(
    site: Site, held: Path, shipped: Path, rdma_hosts: Hosts, gate: Callable[[], Gate]
) -> None:
    near, far = rdma_hosts
    _, manager = served(site, far, "resource-manager")
    served(site, far, "executor", "--resource-manager", manager)
    site.set(client__resource_manager=manager, lane__slot_bytes=65536)

    def cores_free() -> int:
        done = site.run_under(far.command(), "nodes", "--json")
        return int(json.loads(done.stdout)["cores_free"])

    assert cores_free() == 2
    door = gate()
    site.set(rdma__device=near.end.device)
    client = site.client(CLIENT, held, shipped, door.data.decode(), prefix=near.command())
    assert client.lines.next() == "begun"
    door.begun()
    site.set(rdma__device=far.end.device)
    with lost(near), lost(far):
        for _ in range(CALLS):
            line = client.lines.next() or client.stderr
            print(line)
            assert line.startswith("failed "), line
        door.ended()  # the executor has ended the worker of a client that it cannot reach
    print(client.lines.until("again"))
    assert client.wait() == 0, client.stderr
    assert cores_free() == 2


def test_a_device_that_is_taken_away(site: Site, shipped: Path, rdma_hosts: Hosts) -> None:
    """Its executor says so, and when it is back, is reached and counts as before."""
    near, far = rdma_hosts
    child, executor = served(site, far, "executor", "--resource-manager", "none")
    call = ("call", "--executor", executor, "--slot-bytes", "64KiB", "--device", near.end.device)
    assert site.run_under(near.command(), *call, shipped, "echo").returncode == 0
    link = far.command("rdma", "link")
    subprocess.run([*link, "delete", far.end.device], check=True)
    try:
        until(lambda: "was taken away: nobody is heard there" in child.stderr, "it has noticed")
    finally:
        words = ["add", far.end.device, "type", "rxe", "netdev", far.end.netdev]
        subprocess.run([*link, *words], check=True)
    until(lambda: f"listening again at {executor}" in child.stderr, "it listens again")
    done = site.run_under(near.command(), *call, shipped, "echo", __file__)
    assert (done.returncode, done.stdout, done.stderr) == (0, Path(__file__).read_bytes(), b"")
    assert "accounting page" not in child.stderr
