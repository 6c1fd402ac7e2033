"""Amounts that cannot be: refused before anything is sent, by name, value and bound."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from rfaas.errors import CapacityError, LibraryError, UsageError
from tests.harness.site import Site

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"cores": 0}, "argument cores: value is too small (0), at least 1 is required"),
    ({"cores": -3}, "argument cores: value is too small (-3), at least 1 is required"),
    ({"cores": 65537}, "argument cores: value is too large (65537), at most 65536 is allowed"),
    ({"cores": 10**40}, "at most 65536 is allowed"),
    ({"cores": 1.5}, 'argument cores: expected an integer or "all", got a number (1.5)'),
    ({"cores": "2"}, """argument cores: expected an integer or "all", got a string ('2')"""),
    ({"cores": object()}, 'argument cores: expected an integer or "all", got a value of type'),
    ({"memory": 0}, "argument memory: value is too small (0), at least 1 is required"),
    ({"memory": -1}, "argument memory: value is too small (-1), at least 1 is required"),
    ({"memory": 2**60 + 1}, "at most 1152921504606846976 (1 EiB) is allowed"),
    ({"memory": "lots"}, "argument memory: expected a size such as"),
    (
        {"isolation": "magic"},
        "argument isolation: value is unknown ('magic'), allowed are",
    ),
    ({"slots": 0}, "argument slots: value is too small (0), at least 1 is required"),
    ({"slots": 4097}, "argument slots: value is too large (4097), at most 4096 is allowed"),
    ({"slot_bytes": 0}, "argument slot_bytes: value is too small (0), at least 1 is required"),
    ({"slot_bytes": 2**31 + 1}, "at most 2147483648 (2 GiB) is allowed"),
    ({"hot_timeout_ms": -2}, "argument hot_timeout_ms: value is too small (-2), at least -1"),
    ({"call_timeout_s": -0.1}, "argument call_timeout_s: value is too small (-0.1), at least 0"),
    ({"call_timeout_s": math.nan}, "argument call_timeout_s: value is not a number (nan)"),
]


def test_wrong_arguments_leave_the_session_usable(site: Site, shipped: Path) -> None:
    with site.private_session() as session:
        for arguments, words in REFUSED:
            with pytest.raises(UsageError) as refused:
                session.lease(library=shipped, **arguments)
            assert words in refused.value.text
        with session.lease(library=shipped) as lease:
            assert bytes(lease.call("echo", b"still here")) == b"still here"


def test_largest_arguments(site: Site, shipped: Path) -> None:
    with site.private_session() as session:
        with pytest.raises(CapacityError) as refused:
            session.lease(cores=65536, library=shipped)
        assert refused.value.text.startswith("cannot lease 65536 cores and 64 MiB of memory")
        with pytest.raises(CapacityError) as refused:
            session.lease(memory="1EiB", library=shipped)
        assert "ask for at most 2 cores" in refused.value.hint
        with session.lease(library=shipped, slots=4096, slot_bytes="1MiB") as lease:
            assert bytes(lease.call("echo", b"x" * 2**20)) == b"x" * 2**20
        with session.lease(library=shipped, slots=1, slot_bytes=1) as lease:
            assert list(lease.map("echo", [b"a", b"b" * 4096])) == [b"a", b"b" * 4096]
        with session.lease(cores=2, library=shipped, memory="32MiB") as lease:
            assert len(lease.cpus) == 2


@pytest.mark.parametrize("served", [False, True])
def test_more_cores_than_the_node_has(site: Site, shipped: Path, *, served: bool) -> None:
    if served:
        site.start("all")
    done = site.run("call", "--cores", "3", shipped, "echo", "-")
    assert done.returncode == 75
    text = done.stderr.decode()
    assert text.startswith("rfaas: cannot lease 3 cores and 64 MiB of memory: ")
    assert "has 2 of 2 cores" in text
    assert "hint: no node is that large, busy or not; ask for at most 2 cores" in text
    assert done.stdout == b""


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--cores", "0"), "flag lease.cores: value is too small (0), at least 1 is required"),
        (("--cores", "-1"), "flag lease.cores: value is too small (-1), at least 1 is required"),
        (("--cores", "99999999999999999999"), "flag lease.cores: value is too large"),
        (("--cores", "two"), 'flag lease.cores: expected an integer or "all", got a string'),
        (("--memory", "0"), "flag lease.memory: value is too small (0), at least 1 is required"),
        (("--memory=-1GiB",), "flag lease.memory: expected a size such as"),
        (("--memory", "2EiB"), "flag lease.memory: value is too large (2305843009213693952), at"),
    ],
)
def test_amounts_on_the_command_line(
    site: Site, shipped: Path, flags: tuple[str, ...], words: str
) -> None:
    done = site.run("call", *flags, shipped, "echo", "-")
    assert done.returncode == 78
    assert done.stderr.decode().startswith(f"rfaas: {words}")
    assert done.stdout == b""


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("[lane]\nslotz = 4\n", "lane.slotz: unknown key\nhint: did you mean slots"),
        ("[lanes]\n", "lanes: unknown section\nhint: did you mean lane?"),
        ('[lane]\nslots = "4"\n', "lane.slots: expected an integer, got a string ('4')"),
        ("[lane]\nslots = 0\n", "lane.slots: value is too small (0), at least 1 is required"),
        ("[lease]\ncores = 65537\n", "lease.cores: value is too large (65537), at most 65536 is"),
        ("[lane\n", "not TOML: "),
    ],
)
@pytest.mark.parametrize(
    "command", [("call", "lib.so", "f"), ("serve", "--role", "executor"), ("nodes",)]
)
def test_wrong_configuration_file(
    site: Site, command: tuple[str, ...], toml: str, words: str
) -> None:
    file = site.path / "wrong.toml"
    file.write_text(toml)
    done = site.run(*command, "--config", file)
    assert done.returncode == 78
    assert done.stderr.decode().startswith(f"rfaas: {file}: {words}")
    assert done.stdout == b""


def test_wrong_environment(site: Site) -> None:
    done = site.run("nodes", RFAAS_LANE_SLOTS="many")
    assert done.returncode == 78
    assert done.stderr == b"rfaas: RFAAS_LANE_SLOTS: expected an integer, got a string ('many')\n"
    done = site.run("nodes", RFAAS_LANE_SLOTZ="4")
    assert done.returncode == 78
    assert done.stderr.startswith(b"rfaas: RFAAS_LANE_SLOTZ: unknown variable\nhint: did you mean")


@pytest.mark.parametrize("library", [b"", b"not a library", "/dev/null", "", "no/such.so"])
def test_library_that_is_none_leaves_the_session_usable(
    site: Site, shipped: Path, library: str | bytes
) -> None:
    with site.private_session() as session:
        with pytest.raises(LibraryError):
            session.lease(library=library)
        with session.lease(cores=2, library=shipped) as lease:  # nothing was kept from us
            assert bytes(lease.call("echo", b"x")) == b"x"
