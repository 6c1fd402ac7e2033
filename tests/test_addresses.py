"""Addresses of roles: what is one, what is none, and what it comes to."""

from __future__ import annotations

import pytest

from rfaas.addresses import announced, is_local, parse, reachable
from rfaas.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("unix:/run/rfaas/x.sock", ("unix", "/run/rfaas/x.sock", "", 0)),
        ("tcp:node-7.site.org:7471", ("tcp", "", "node-7.site.org", 7471)),
        ("tcp:10.0.0.1:65535", ("tcp", "", "10.0.0.1", 65535)),
        ("tcp:[::1]:1", ("tcp", "", "::1", 1)),
        ("tcp:[fe80::1%eth0]:1", ("tcp", "", "fe80::1%eth0", 1)),
        ("tcp:*:0", ("tcp", "", "*", 0)),
    ],
)
def test_what_is_one(text: str, parts: tuple[str, str, str, int]) -> None:
    found = parse(text)
    assert (found.scheme, found.path, found.host, found.port) == parts
    assert str(found) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unix:",
        "unix:relative",
        "unix:/folder/",
        "unix:/nul\0",
        "/path",
        "udp:host:1",
        "tcp:",
        "tcp:host",
        "tcp::1",
        "tcp:ho st:1",
        "tcp:host/x:1",
        "tcp:**:1",
        "tcp:::1:1",
        "tcp:[]:1",
        "tcp:[host]:1",
        "tcp:[::1%]:1",
        "tcp:[::1:1",
        "tcp:host:",
        "tcp:host:-1",
        "tcp:host:65536",
        "tcp:host:1e3",
        "tcp:host:\u0661",
        f"tcp:host:{'9' * 5000}",
        f"tcp:{'h' * 254}:1",
    ],
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match=r"address|path|port"):
        parse(text)


@pytest.mark.parametrize("text", ["tcp:*:7471", "tcp:host:0"])
def test_an_address_to_listen_at_is_none_to_connect_to(text: str) -> None:
    parse(text)
    with pytest.raises(ConfigError, match=r"is one to listen at"):
        reachable(text)


def test_what_others_are_told() -> None:
    assert announced("tcp:*:7471", "10.0.0.1") == "tcp:10.0.0.1:7471"
    assert announced("tcp:*:7471", "fe80::1") == "tcp:[fe80::1]:7471"
    assert announced("tcp:node7:7471", "10.0.0.1") == "tcp:node7:7471"
    assert announced("unix:/x", "10.0.0.1") == "unix:/x"


def test_which_are_local() -> None:
    assert is_local("unix:/x")
    assert is_local("private")
    assert not is_local("tcp:localhost:1")
    assert not is_local("verbs:localhost:1")
