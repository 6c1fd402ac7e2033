"""The configuration that the program carries, per-host tables, and all faults at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rfaas import __version__, config, config_sources
from rfaas.errors import ConfigError

SITE = b"""
format = 1
[executor]
cores = 8
stop_grace_s = 3
[lane]
slots = 32

[[host]]
match = "gpu-*"
[host.executor]
cores = 4
memory = "8GiB"

[[host]]
match = "gpu-07.hall2*"
executor.memory = "16GiB"
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment without a configuration."""
    return {"XDG_CONFIG_HOME": str(tmp_path / "xdg"), "RFAAS_RUNTIME_DIR": str(tmp_path)}


@pytest.fixture
def site(tmp_path: Path) -> str:
    file = tmp_path / "site.toml"
    file.write_bytes(SITE)
    return str(file)


def faults(text: bytes, tmp_path: Path, host: str = "n1") -> list[str]:
    """All that is said about a file, called site.toml."""
    file = tmp_path / "wrong.toml"
    file.write_bytes(text)
    loaded, found = config.examine(str(file), {}, host=host)
    assert loaded is None
    return [str(fault).replace(str(file), "site.toml") for fault in found]


# Hosts --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "cores", "memory", "origin"),
    [
        ("login1", 8, "all", ""),
        ("gpu-01", 4, 8 << 30, ', host "gpu-*"'),
        ("GPU-01.hall1.example.org", 4, 8 << 30, ', host "gpu-*"'),
        ("gpu-07.hall2.example.org", 4, 16 << 30, ', host "gpu-07.hall2*"'),
        ("gpu-07", 4, 8 << 30, ', host "gpu-*"'),
        ("big-gpu-01", 8, "all", ""),
    ],
)
def test_tables_for_hosts(
    environ: dict[str, str], site: str, host: str, cores: int, memory: object, origin: str
) -> None:
    loaded = config.load(site, environ, host=host)
    executor = loaded.config.executor
    assert (executor.cores, executor.memory, executor.stop_grace_s) == (cores, memory, 3.0)
    assert executor.name == host
    assert loaded.config.lane.slots == 32
    assert loaded.origin["lane.slots"] == f"file {site}"
    expected = f"file {site}{origin}" if origin else "default"
    assert loaded.origin["executor.memory"] == expected


def test_this_host_unless_told_otherwise(environ: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(f'[[host]]\nmatch = "{os.uname().nodename}"\nlane.slots = 7\n')
    assert config.load(str(file), environ).config.lane.slots == 7


def test_environment_and_flags_beat_a_host(environ: dict[str, str], site: str) -> None:
    environ["RFAAS_EXECUTOR_CORES"] = "2"
    loaded = config.load(site, environ, {"executor.memory": "1GiB"}, host="gpu-01")
    assert (loaded.config.executor.cores, loaded.config.executor.memory) == (2, 1 << 30)
    assert loaded.origin["executor.memory"] == "flag"


def test_other_hosts_tables_are_checked_too(tmp_path: Path) -> None:
    text = b'[[host]]\nmatch = "gpu-*"\n[host.lane]\nslots = 9000\nslot = 1\n[host.lan]\n'
    assert faults(text, tmp_path) == [
        'site.toml: host "gpu-*": lane.slots: value is too large (9000), at most 4096 is allowed',
        'site.toml: host "gpu-*": lane.slot: unknown key\nhint: did you mean slots, slot_bytes?',
        'site.toml: host "gpu-*": lan: unknown section\nhint: did you mean lane?',
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"host = 3", "host: expected tables such as [[host]], got an integer (3)"),
        (b"[host.lane]", "host: expected tables such as [[host]], got a table"),
        (b"host = [3]", "host 1: expected a table, got an integer (3)"),
        (b"[[host]]", 'host 1: match is missing\nhint: such as match = "gpu-*"'),
        (b"[[host]]\nmatch = ''", 'host 1: match is empty\nhint: match = "*" is every host'),
        (b"[[host]]\nmatch = 3", "host 1: match: expected a string, got an integer (3)"),
        (
            b"[[host]]\nmatch = 'a'\nlane = 3",
            'host "a": lane: expected a table, got an integer (3)',
        ),
        (b"[hosts]", "hosts: unknown section\nhint: did you mean host?"),
    ],
)
def test_wrong_host_tables(tmp_path: Path, text: bytes, fault: str) -> None:
    assert faults(text, tmp_path) == [f"site.toml: {fault}"]


# What the program carries ---------------------------------------------------


def test_embedded_stands_between_named_and_found_files(
    environ: dict[str, str], tmp_path: Path
) -> None:
    found = tmp_path / "xdg/rfaas/rfaas.toml"
    found.parent.mkdir(parents=True)
    found.write_text("[lane]\nslots = 2\nhot_timeout_ms = 2\n")
    named = tmp_path / "named.toml"
    named.write_text("lane.slots = 4\n")
    embedded = ("site.toml", b"[lane]\nslots = 3\nslot_bytes = 8192\n")

    loaded = config.load(None, environ, embedded=embedded)
    assert (loaded.config.lane.slots, loaded.config.lane.hot_timeout_ms) == (3, 2)
    assert loaded.origin["lane.slots"] == "embedded site.toml"
    assert loaded.origin["lane.hot_timeout_ms"] == f"file {found}"
    assert loaded.read == (f"file {found}", "embedded site.toml")

    for path, variables in ((str(named), {}), (None, {"RFAAS_CONFIG": str(named)})):
        loaded = config.load(path, environ | variables, embedded=embedded)
        lane = loaded.config.lane
        assert (lane.slots, lane.slot_bytes, lane.hot_timeout_ms) == (4, 8192, 100)
        assert loaded.origin["lane.slots"] == f"file {named}"
        assert loaded.origin["lane.slot_bytes"] == "embedded site.toml"
        assert loaded.read == ("embedded site.toml", f"file {named}")

    environ["RFAAS_LANE_SLOTS"] = "5"
    assert config.load(str(named), environ, embedded=embedded).config.lane.slots == 5


def test_embedded_tables_for_hosts(environ: dict[str, str]) -> None:
    loaded = config.load(None, environ, embedded=("site.toml", SITE), host="gpu-3")
    assert loaded.origin["executor.cores"] == 'embedded site.toml, host "gpu-*"'


def test_faults_of_what_is_embedded(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(None, environ, embedded=("site.toml", b"lane.slots = 0"))
    assert str(caught.value) == (
        "embedded site.toml: lane.slots: value is too small (0), at least 1 is required"
    )
    assert caught.value.exit_status == 78


# Format ---------------------------------------------------------------------


def test_a_newer_format_is_refused_as_one_fault(tmp_path: Path) -> None:
    newer = config_sources.CONFIG_FORMAT + 1
    assert faults(b"format = %d\n[new_section]\nkey = 1\n" % newer, tmp_path) == [
        (
            f"site.toml: format is too new ({newer}), rfaas {__version__} reads {newer - 1}\n"
            "hint: use the rfaas that the file was written for, or a newer one"
        )
    ]


@pytest.mark.parametrize("value", ["0", "'1'", "true", "1.0"])
def test_a_format_that_is_none(tmp_path: Path, value: str) -> None:
    (fault,) = faults(f"format = {value}".encode(), tmp_path)
    assert fault.startswith("site.toml: format: expected a number from 1 on, got ")


# All faults -----------------------------------------------------------------


def test_every_fault_of_every_source_is_found(tmp_path: Path) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text("[lane]\nslots = 0\ntransport = 'smh'\n[[host]]\n[log]\nlevel = 1\n")
    loaded, found = config.examine(
        str(file),
        {"RFAAS_LANE_SLOTS": "many"},
        {"lease.cores": "none", "lane.slot": 1},
        embedded=("site.toml", b"executor.cores = 0"),
    )
    assert loaded is None
    assert [fault.text.replace(str(file), "wrong.toml").partition(": ")[0] for fault in found] == [
        "embedded site.toml",
        *["wrong.toml"] * 4,
        "RFAAS_LANE_SLOTS",
        "flag lease.cores",
        "flag lane.slot",
    ]
    with pytest.raises(ConfigError, match=r"lane\.slots"):
        config.load(str(file), {})


def test_a_missing_file_does_not_hide_the_rest() -> None:
    _, found = config.examine("/nonexistent/x.toml", {"RFAAS_LANE_SLOTS": "0"})
    assert [fault.text.partition(":")[0] for fault in found] == [
        "cannot read /nonexistent/x.toml",
        "RFAAS_LANE_SLOTS",
    ]
