"""Bills: what workers measured, a second old at most, whoever is killed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rfaas.errors import RfaasError
from tests.harness.gate import Gate
from tests.harness.hostile import OVER
from tests.harness.processes import until, workers_of
from tests.harness.site import Site

HOLDS = """
library, data = sys.argv[1:]
session = rfaas.connect()
lease = session.lease(library=library)
say(lease.id)
lease.call('hold', data.encode())
"""
FRESH_S = 1.0


def bills(site: Site, *flags: str) -> list[dict[str, Any]]:
    """What `rfaas bills --json` prints."""
    done = site.run("bills", "--json", *flags)
    assert (done.returncode, done.stderr) == (0, b"")
    return [json.loads(line) for line in done.stdout.splitlines()]


def billed(site: Site, lease: str) -> float:
    """Core-seconds that a lease has allocated so far."""
    return sum(float(one["allocated_s"]) for one in bills(site) if one["lease"] == lease)


def wait_until_fresh(site: Site, lease: str, begun_s: float) -> float:
    """The bill of a lease of one core, once what is missing in it is a second at most."""

    def look() -> float:
        asked_s = time.monotonic()
        found = billed(site, lease)
        assert found <= time.monotonic() - begun_s
        return found if found >= asked_s - begun_s - FRESH_S else 0.0

    found: float = until(look, "a bill that is a second old at most")
    return found


def wait_until_old(site: Site, lease: str) -> None:
    """Return when more was billed than may be missing at the end."""
    until(lambda: billed(site, lease) > 2 * FRESH_S, "a bill of some seconds")


def test_the_sum_over_leases_is_what_workers_measured(site: Site, counter: Path) -> None:
    site.set(lane__hot_timeout_ms=5)
    _, executor = site.start("resource-manager"), site.start("executor")
    calls = 0
    for client in ("anna", "berta", "anna"):
        with site.session(client__name=client) as session:
            for cores in (1, 2):
                with session.lease(cores=cores, library=counter) as lease:
                    for _ in range(300 * cores):
                        lease.call("count", b"")
                        calls += 1
    measured = list(map(dict, _measured(executor.stderr)))
    assert len(measured) == 6

    def whole() -> list[dict[str, Any]]:
        found = bills(site)
        return found if sum(one["calls"] for one in found) == calls else []

    found = until(whole, "all calls in the bills")
    for key in ("executing_s", "polling_s"):
        of_workers = sum(one[key] for one in measured)
        assert sum(one[key] for one in found) == pytest.approx(of_workers, rel=0.01, abs=0.003)
    by_lease = {one["lease"][:8]: one["calls"] for one in found}
    assert by_lease == {one["lease"]: one["calls"] for one in measured}
    by_client = {one["client"]: one for one in bills(site, "--by", "client")}
    assert {name: one["calls"] for name, one in by_client.items()} == {"anna": 1800, "berta": 900}
    assert bills(site, "--client", "berta", "--by", "client") == [by_client["berta"]]
    for one in found:
        assert one["executing_s"] + one["polling_s"] <= one["allocated_s"]


def _measured(log: str) -> Any:
    for match in OVER.finditer(log):
        found = match.groupdict()
        yield {
            "lease": found["lease"],
            "calls": int(found["calls"]),
            "executing_s": float(found["executing_s"]),
            "polling_s": float(found["polling_s"]),
        }


def test_a_bill_is_a_second_old_at_most(site: Site, held: Path, gate: Callable[[], Gate]) -> None:
    """Also with a heartbeat of minutes, and while a call runs."""
    site.set(resource_manager__heartbeat_s=600)
    site.start("all")
    held_gate = gate()
    begun_s = time.monotonic()
    client = site.client(HOLDS, held, held_gate.path)
    lease = client.lines.next()
    assert lease
    held_gate.begun()
    first = wait_until_fresh(site, lease, begun_s)
    assert wait_until_fresh(site, lease, begun_s) >= first
    (row,) = bills(site)
    assert row["executing_s"] > 0  # the call has not returned
    held_gate.release()
    client.wait()


def test_killed_client_is_billed_to_its_end(
    site: Site, held: Path, gate: Callable[[], Gate]
) -> None:
    site.start("all")
    held_gate = gate()
    begun_s = time.monotonic()
    client = site.client(HOLDS, held, held_gate.path)
    lease = client.lines.next()
    assert lease
    held_gate.begun()
    running_s = time.monotonic()
    wait_until_old(site, lease)
    client.signal(signal.SIGKILL)
    killed_s = time.monotonic()
    client.wait()
    ended(site, lease, "client-lost")
    after = settled(site, lease)
    assert killed_s - running_s <= after <= time.monotonic() - begun_s, "to its very end"


def test_killed_worker_is_billed_to_its_end(site: Site, counter: Path) -> None:
    """What it counted in its last second is in the bill; the lease goes on and is charged on."""
    manager = site.start("all")
    with site.session() as session, session.lease(library=counter) as lease:
        for _ in range(100):
            lease.call("count", b"")
        (worker,) = workers_of(manager.pid)
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(RfaasError, match="SIGKILL"):
            lease.call("count", b"")
        lease.call("count", b"")  # by the next worker
        # While the lease lives: no last word of it brings what the dead worker had counted.
        found = until(lambda: [one for one in bills(site) if one["calls"] >= 101], "all calls")
        assert [one.state for one in session.leases()] == ["live"]
    assert found[0]["lease"] == lease.id


def test_killed_executor_is_billed_to_the_second(
    site: Site, held: Path, gate: Callable[[], Gate]
) -> None:
    site.start("resource-manager")
    executor = site.start("executor")
    held_gate = gate()
    begun_s = time.monotonic()
    client = site.client(HOLDS, held, held_gate.path)
    lease = client.lines.next()
    assert lease
    held_gate.begun()
    running_s = time.monotonic()
    wait_until_old(site, lease)
    killing_s = time.monotonic()
    site.kill(executor)
    killed_s = time.monotonic()
    ended(site, lease, "node-lost")
    after = settled(site, lease)
    assert killing_s - running_s - FRESH_S <= after <= killed_s - begun_s
    client.wait()


def test_killed_manager_loses_no_bill_and_charges_nothing_twice(site: Site, counter: Path) -> None:
    manager = site.start("resource-manager")
    site.start("executor")
    begun_s = time.monotonic()
    with site.session() as session, session.lease(cores=1, library=counter) as lease:
        for _ in range(50):
            lease.call("count", b"")
        before = wait_until_fresh(site, lease.id, begun_s)
        site.kill(manager)
        site.start("resource-manager")
        assert billed(site, lease.id) >= before - FRESH_S
        for _ in range(50):
            lease.call("count", b"")
        lease_id = lease.id
    (row,) = until(lambda: [one for one in bills(site) if one["calls"] == 100], "all calls, once")
    assert row["lease"] == lease_id
    assert row["allocated_s"] <= time.monotonic() - begun_s


def test_bills_outlive_the_lease_and_the_manager(site: Site, counter: Path) -> None:
    manager = site.start("all")
    with site.session() as session:
        session.lease(library=counter).close()
    before = until(lambda: bills(site), "a bill")
    manager.signal(signal.SIGTERM)
    manager.wait()
    site.start("all")
    assert bills(site) == before


def test_prices(site: Site, counter: Path) -> None:
    site.set(
        prices__currency="EUR", prices__allocated_core_hour=3600, prices__million_calls=1_000_000
    )
    site.start("all")
    with site.session() as session, session.lease(library=counter) as lease:
        for _ in range(10):
            lease.call("count", b"")
    (row,) = until(lambda: [one for one in bills(site) if one["calls"] == 10], "all calls")
    assert row["cost"] == pytest.approx(row["allocated_s"] + 10)
    assert row["currency"] == "EUR"
    head, line = site.run("bills", "--csv").stdout.decode().splitlines()
    cells = dict(zip(head.split(","), line.split(","), strict=True))
    assert (cells["lease"], cells["calls"], cells["currency"]) == (row["lease"], "10", "EUR")
    assert float(cells["cost"]) == row["cost"]
    table = site.run("bills").stdout.decode()
    assert f"{row['cost']:.6g} EUR" in table


@pytest.mark.parametrize(
    "day", ["tomorrow", "2026-13-01", "20261123", "-1d", "1e3d", "", "x" * 999]
)
def test_days_that_are_none(site: Site, day: str) -> None:
    site.start("resource-manager")
    done = site.run("bills", f"--since={day}")
    assert done.returncode == 2
    assert b"is no day\nhint: write 2026-11-23" in done.stderr


def ended(site: Site, lease: str, cause: str) -> None:
    """Return when a lease has ended so."""

    def look() -> bool:
        done = site.run("leases", "--all", "--json")
        found = map(json.loads, done.stdout.splitlines())
        return any(one["lease"] == lease and one["state"] == cause for one in found)

    until(look, f"the end of the lease: {cause}")


def settled(site: Site, lease: str) -> float:
    """The bill of a lease that has ended, once it stays as it is."""
    found = [0.0, 1.0]

    def look() -> bool:
        found.append(billed(site, lease))
        return found[-1] == found[-2] == found[-3]

    until(look, "a bill that grows no more")
    return found[-1]
