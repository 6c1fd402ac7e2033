"""Roles and clients that meet at addresses of a network, on one machine here."""

from __future__ import annotations

import json
import re

import pytest

from rfaas.diagnose.devices import find_devices
from tests.harness.processes import Child
from tests.harness.site import Site


def served(site: Site, role: str, *flags: str) -> tuple[Child, str, str]:
    """A role that is ready: its process, where it listens, and what it says to type next."""
    child = site.start_unready(role, *flags)
    line = child.lines.next() or child.stderr
    found = re.search(r" ready on (\S+?)(?:, lends .*)?; next: (.*)", line)
    assert found, line
    return child, found[1], found[2]


@pytest.fixture
def network(site: Site) -> Site:
    """A site whose manager and executor listen on TCP; clients are told of the manager."""
    _, manager, typed = served(site, "resource-manager", "--address", "tcp:127.0.0.1:0")
    assert f"serve --role executor --resource-manager {manager}" in typed
    flags = ("--address", "tcp:127.0.0.1:0", "--resource-manager", manager)
    _, _, typed = served(site, "executor", *flags)
    assert f"call --resource-manager {manager} functions/" in typed
    site.set(client__resource_manager=manager)
    return site


def test_nodes_say_where_they_are(network: Site) -> None:
    (line,) = network.run("nodes", "--json").stdout.splitlines()
    node = json.loads(line)
    assert node["state"] == "up"
    assert re.fullmatch(r"tcp:127\.0\.0\.1:[1-9]\d*", node["address"])
    assert node["cores_free"] == 2


def test_an_executor_on_every_address_announces_the_one_it_is_reached_by(site: Site) -> None:
    """On the manager's own machine clients of others know it by its name."""
    _, manager, _ = served(site, "resource-manager", "--address", "tcp:127.0.0.1:0")
    flags = ("--address", "tcp:*:0", "--resource-manager", manager)
    child, _, _ = served(site, "executor", *flags)
    site.set(client__resource_manager=manager)
    (line,) = site.run("nodes", "--json").stdout.splitlines()
    name = re.escape(json.loads(line)["node"])
    assert re.fullmatch(rf"tcp:{name}:[1-9]\d*", json.loads(line)["address"])
    assert "links are not authenticated; for trusted networks only" in child.stderr


@pytest.mark.skipif(bool(find_devices(with_limits=False)), reason="this machine has RDMA")
def test_calls_need_rdma(network: Site, shipped: str) -> None:
    """They say so before anything is sent, and give the cores back."""
    done = network.run("call", shipped, "echo")
    said = done.stderr.decode()
    assert done.returncode == 69, said
    assert re.search(r"calls to executor \S+, reached over a network, need RDMA: ", said)
    (line,) = network.run("nodes", "--json").stdout.splitlines()
    assert json.loads(line)["cores_free"] == 2


def test_memory_is_not_shared_through_a_network(network: Site, shipped: str) -> None:
    done = network.run("call", "--transport", "shm", shipped, "echo")
    assert done.returncode == 2
    assert b"transport shm is for a client and an executor on one machine" in done.stderr
    assert b'hint: set lane.transport to "auto" or "verbs"' in done.stderr


def test_an_executor_alone(site: Site, shipped: str) -> None:
    """Where it listens on every address, clients keep to the one they came by."""
    flags = ("--address", "tcp:*:0", "--resource-manager", "none")
    _, address, _ = served(site, "executor", *flags)
    there = address.replace("*", "127.0.0.1")
    done = site.run("call", "--executor", there, "--transport", "shm", shipped, "echo")
    assert b"transport shm is for a client" in done.stderr  # it was reached


def test_a_manager_that_was_named_is_not_done_without(site: Site, shipped: str) -> None:
    """A private executor stands in for the default address alone."""
    done = site.run("call", "--set", "resource_manager.address=tcp:127.0.0.1:1", shipped, "echo")
    assert done.returncode == 69
    assert b"no resource manager: nobody answers at tcp:127.0.0.1:1" in done.stderr
