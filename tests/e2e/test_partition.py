"""Rows 34 and 39: hosts that are cut off, without an end or a reset of any connection."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.gate import Gate
from tests.harness.hosts import Host, cabled
from tests.harness.processes import PATIENCE_S, Child, until, wait_for_end
from tests.harness.site import Site

CUT_PATIENCE_S = 2 * PATIENCE_S  # a connection that is made anew may wait for 10 s itself

# Leases from who grants (argv[1]), opens them at their node, says their ids; then does as told.
CLIENT = """
from rfaas.control import link as links
from rfaas.errors import RfaasError
from rfaas.proto import messages as m
from rfaas.proto.proof import prove
hello = m.Hello(version=m.PROTOCOL_VERSION, role="client", name="tester")
grants = links.connect(sys.argv[1], hello)
nodes = []
def lease(duration_s):
    asked = m.RequestLease(
        client="tester", cores=1, memory_bytes=1 << 20, duration_s=float(duration_s),
        isolation="process",
    )
    granted = grants.ask(asked, m.LeaseGranted)
    node = links.connect(granted.address, hello)
    proof = prove(granted.secret, node.nonce, granted.lease)
    node.ask(m.OpenLease(token=granted.token, proof=proof), m.LeaseOpened)
    nodes.append(node)
    return granted.lease
for line in sys.stdin:
    try:
        say(lease(line))
    except RfaasError as error:
        say("refused", error.text)
"""

# Is in a call, and says how that ended.
CALLER = """
from rfaas.errors import LeaseEndedError
library, data = sys.argv[1:]
lease = rfaas.connect().lease(library=library)
say(lease.id)
try:
    lease.call("hold", data.encode())
except LeaseEndedError as error:
    say(error.text)
sys.stdin.read()
"""


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    with cabled() as made:
        yield made


def serve(site: Site, host: Host, role: str, *flags: str) -> tuple[Child, str]:
    """A role on a host, once it is ready, and where it listens."""
    address = f"tcp:{host.address}:0"
    child = site.start_unready(role, "--address", address, *flags, prefix=host.prefix)
    line = child.lines.next() or child.stderr
    found = re.search(r" ready on (tcp:\S+?)[,;]", line)
    assert found, line
    return child, found[1]


def table(site: Site, host: Host, *words: str) -> list[dict[str, Any]]:
    """What a command reports, asked on a host."""
    done = site.run_under(host.prefix, *words, "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def says(child: Child, text: str) -> None:
    until(lambda: text in child.stderr, f"{text!r} in a log", CUT_PATIENCE_S)


def asked(client: Child, duration_s: float = 600.0) -> str:
    """A lease's id, or why there is none."""
    client.say(str(duration_s))
    said = client.lines.next(CUT_PATIENCE_S)
    assert said is not None, client.stderr
    return said


def leased(client: Child, duration_s: float = 600.0) -> str:
    said = asked(client, duration_s)
    assert not said.startswith("refused"), said
    return said


def beats(site: Site) -> None:
    """As the defaults are: a beat is a second."""
    site.set(resource_manager__heartbeat_s=1.0, resource_manager__missed_beats_max=5)


def test_row_34_client_s_host_vanishes(site: Site, hosts: tuple[Host, Host]) -> None:
    """No FIN: manager and executor find it out by themselves, and the bill stops."""
    here, there = hosts
    beats(site)
    manager, at = serve(site, here, "resource-manager")
    executor, _ = serve(site, here, "executor", "--resource-manager", at)
    client = site.client(CLIENT, at, prefix=there.prefix)
    lease = leased(client)
    site.set(client__resource_manager=at)
    (found,) = table(site, here, "leases")
    assert (found["lease"], found["state"]) == (lease, "live")
    there.cut()
    says(manager, f"lease {lease[:8]} ended on {found['node']}: client-lost")
    says(executor, f"lease {lease[:8]} is over (client-lost)")
    assert client.process.poll() is None, "the client lives, and nothing was closed"
    (node,) = table(site, here, "nodes")
    assert node["cores_free"] == node["cores"]
    (bill,) = table(site, here, "bills")
    (again,) = table(site, here, "bills")
    assert bill["allocated_s"] == again["allocated_s"] > 0
    site.kill(client)


def test_row_34_client_cut_off_in_mid_call(
    site: Site, hosts: tuple[Host, Host], held: Path, gate: Callable[[], Gate]
) -> None:
    """No FIN: the manager gives its lease up, the node ends the call, and the bill stops."""
    here, there = hosts
    beats(site)
    manager, at = serve(site, here, "resource-manager")
    executor = site.start_unready("executor", "--resource-manager", at, prefix=here.prefix)
    site.set(client__resource_manager=at)
    executor.lines.until("executor ")
    one = gate()
    client = site.client(CALLER, held, one.path, prefix=there.prefix)
    lease = client.lines.next()
    assert lease, client.stderr
    worker = one.begun()
    there.cut()
    says(manager, f"lease {lease[:8]} ended on ")
    assert "client-lost" in manager.stderr
    one.ended()
    wait_for_end(worker)
    said = client.lines.next(CUT_PATIENCE_S)
    assert said is not None
    assert "client-lost" in said, "its link to the node holds, and tells it why"
    says(executor, f"lease {lease[:8]} is over (client-lost)")
    (node,) = table(site, here, "nodes")
    assert node["cores_free"] == node["cores"]
    until(lambda: table(site, here, "bills") == table(site, here, "bills"), "a bill that stands")
    (bill,) = table(site, here, "bills")
    assert 0 < bill["executing_s"] <= bill["allocated_s"]
    site.kill(client)


def test_row_34_client_of_an_executor_alone(site: Site, hosts: tuple[Host, Host]) -> None:
    here, there = hosts
    executor, at = serve(site, here, "executor", "--resource-manager", "none")
    client = site.client(CLIENT, at, prefix=there.prefix)
    lease = leased(client)
    there.cut()
    says(executor, f"lease {lease[:8]} is over (client-lost)")
    site.kill(client)


def test_a_client_that_is_stopped_has_not_vanished(site: Site, hosts: tuple[Host, Host]) -> None:
    """Its kernel answers: one that computes with the interpreter's lock held keeps its lease."""
    here, there = hosts
    beats(site)
    _, at = serve(site, here, "resource-manager")
    serve(site, here, "executor", "--resource-manager", at)
    client, other = (site.client(CLIENT, at, prefix=there.prefix) for _ in range(2))
    lease, short = leased(client), leased(other, 8.0)
    client.signal(signal.SIGSTOP)
    site.set(client__resource_manager=at)
    until(  # more than three beats by the manager's own clock
        lambda: [one["lease"] for one in table(site, here, "leases")] == [lease],
        f"the end of lease {short[:8]}, which is not renewed",
    )
    client.signal(signal.SIGCONT)
    assert leased(client) != lease


def test_row_39_partition_of_manager_and_executor(site: Site, hosts: tuple[Host, Host]) -> None:
    """No new leases, old ones run on; once healed the stale side ends them, and no core is
    leased twice."""
    here, there = hosts
    beats(site)
    manager, at = serve(site, here, "resource-manager")
    executor, _ = serve(site, there, "executor", "--resource-manager", at)
    client = site.client(CLIENT, at, prefix=there.prefix)
    short, long = leased(client, 9.0), leased(client)
    site.set(client__resource_manager=at)
    here.cut()
    says(manager, " lost")
    for lease in (short, long):
        says(manager, f"lease {lease[:8]} ended on ")
    assert table(site, here, "nodes")[0]["state"] == "lost"
    near = site.client(CLIENT, at, prefix=here.prefix)
    assert asked(near).startswith("refused"), "the cores of a node that is lost"
    says(executor, f"lease {short[:8]} is over (expired)")  # ran to its end, on its own clock
    assert f"lease {long[:8]} is over" not in executor.stderr, "the other runs on"
    assert asked(client).startswith("refused"), "a new lease on the far side"
    here.mend()
    says(executor, f"lease {long[:8]} is over (revoked)")
    until(lambda: table(site, here, "nodes")[0]["state"] == "up", "the node again")
    fresh = [asked(near) for _ in range(3)]  # of two cores
    assert [one.startswith("refused") for one in fresh] == [False, False, True], (
        manager.stderr + executor.stderr
    )
    (node,) = table(site, here, "nodes")
    assert node["cores_free"] == 0
