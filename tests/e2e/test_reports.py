"""`rfaas nodes`, `leases` and `status`: for people and as JSON, and with nobody there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rfaas import __version__
from tests.harness.gate import Gate
from tests.harness.processes import until
from tests.harness.site import Site

NODE = os.uname().nodename


def objects(site: Site, *command: str) -> list[dict[str, object]]:
    """What a command prints with --json: one object a line."""
    done = site.run(*command, "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("command", ["nodes", "leases", "status"])
@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_nobody_there(site: Site, command: str, flags: tuple[str, ...]) -> None:
    done = site.run(command, *flags)
    assert (done.returncode, done.stdout) == (69, b"")
    assert done.stderr.decode() == (
        f"rfaas: no resource manager: nobody answers at {site.address()}: "
        "No such file or directory\n"
        "hint: start one with: rfaas serve --role resource-manager\n"
    )


@pytest.mark.parametrize("command", ["nodes", "leases", "status"])
def test_private_executor_has_no_reports(site: Site, command: str) -> None:
    done = site.run(command, "--executor", "private")
    assert (done.returncode, done.stdout) == (69, b"")
    assert done.stderr.decode().startswith(f"rfaas: a private executor has no {command}\nhint: ")


def test_nothing_yet(site: Site) -> None:
    site.start("resource-manager")
    for command, words in (
        ("nodes", b"no node has joined yet\n"),
        ("leases", b"no lease is live\n"),
    ):
        done = site.run(command)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", words)
        assert objects(site, command) == []


def test_nodes_and_leases(site: Site, held: Path, gate: Callable[[], Gate]) -> None:
    site.start("all")
    (node,) = objects(site, "nodes")
    assert (node["node"], node["state"]) == (NODE, "up")
    assert (node["cores"], node["cores_free"], node["leases"]) == (2, 2, 0)
    assert node["address"] == site.address("executor")

    with site.session() as session, session.lease(library=held) as lease:
        for _ in range(10):
            lease.call("copy", b"x")
        (node,) = objects(site, "nodes")
        assert (node["cores"], node["cores_free"], node["leases"]) == (2, 1, 1)
        done = site.run("nodes")
        head, row = done.stdout.decode().splitlines()
        assert head.split()[:2] == ["NODE", "STATE"]
        assert row.split()[:5] == [NODE, "up", "1", "of", "2"]

        def calls() -> bool:  # they come with the next beat
            (found,) = objects(site, "leases")
            assert found["lease"] == lease.id
            assert (found["state"], found["cores"], found["node"]) == ("live", 1, NODE)
            assert found["memory_bytes"] == 64 << 20
            usage = found["usage"]
            assert isinstance(usage, dict)
            return bool(usage["calls"] == 10)

        until(calls, "ten calls in the report")
        head, row = site.run("leases").stdout.decode().splitlines()
        assert head.split()[:2] == ["LEASE", "STATE"]
        assert row.split()[:2] == [lease.id[:8], "live"]

    assert objects(site, "leases") == []
    (ended,) = objects(site, "leases", "--all")
    assert (ended["lease"], ended["state"]) == (lease.id, "released")


def test_usage_is_billed_once_more_at_the_end(site: Site, held: Path) -> None:
    """What a lease used between the last beat and its end counts."""
    site.set(resource_manager__heartbeat_s=60)
    site.start("all")
    with site.session() as session:
        with session.lease(library=held) as lease:
            for _ in range(123):
                lease.call("copy", b"x")
        (report,) = session.leases(all=True)
        until(lambda: session.leases(all=True)[0].usage.calls == 123, "123 calls in the bill")
        (report,) = session.leases(all=True)
        assert report.usage.failed == 0
        assert report.usage.allocated_ns >= report.usage.executing_ns > 0


def test_status(site: Site) -> None:
    both = site.start("all")
    (status,) = objects(site, "status")
    assert (status["role"], status["version"]) == ("resource-manager", __version__)
    assert (status["pid"], status["address"]) == (both.pid, site.address())
    facts = status["facts"]
    assert isinstance(facts, dict)
    assert (facts["nodes up"], facts["cores"], facts["cores free"]) == (1, 2, 2)
    text = site.run("status").stdout.decode()
    assert text.startswith(f"resource-manager {NODE}, version {__version__}, pid {both.pid}\n")
    assert "\ncores free: 2\n" in text

    (status,) = objects(site, "status", "--executor", site.address("executor"))
    assert (status["role"], status["name"], status["pid"]) == ("executor", NODE, both.pid)


def test_executor_without_a_manager(site: Site, shipped: Path) -> None:
    """Decentralised: a client names the executor, which grants its own cores."""
    site.start("executor", "--resource-manager", "none")
    address = site.address("executor")
    done = site.run("call", "--executor", address, shipped, "echo", "-", stdin=b"abc")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"abc", b"")
    done = site.run("nodes", "--executor", address)
    assert done.returncode == 76
    assert done.stderr == b"rfaas: an executor does not answer ListNodes\n"


def test_executor_with_a_manager_grants_nothing_by_itself(site: Site, shipped: Path) -> None:
    site.start("all")
    done = site.run("call", "--executor", site.address("executor"), shipped, "echo", "-")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode() == (
        f"rfaas: node {NODE} grants no leases by itself\n"
        f"hint: ask the resource manager at {site.address()}\n"
    )


def test_ready_lines_say_what_to_type_next(site: Site) -> None:
    manager = site.start_unready("resource-manager")
    assert manager.lines.next() == (
        f"resource manager ready on {site.address()}; next: ./rfaas.py serve --role executor"
    )
    executor = site.start_unready("executor")
    assert executor.lines.next() == (
        f"executor {NODE} ready on {site.address('executor')}, lends 2 cores; "
        "next: ./rfaas.py call functions/libfunctions.so echo README.md"
    )


def test_several_executors(site: Site, shipped: Path) -> None:
    site.start("resource-manager")
    for name in ("alpha", "beta"):
        site.start("executor", "--name", name, "--node-cores", "1", "--node-memory", "1GiB")
    found = {str(node["node"]): node["cores_free"] for node in objects(site, "nodes")}
    assert found == {"alpha": 1, "beta": 1}
    with (
        site.session() as session,
        session.lease(library=shipped) as one,
        session.lease(library=shipped) as other,
    ):
        assert {one.node, other.node} == {"alpha", "beta"}
        assert bytes(one.call("echo", b"1")) == b"1"
        assert bytes(other.call("echo", b"2")) == b"2"
