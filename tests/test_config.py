"""The configuration: where values come from, and what is said about wrong ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

import rfaas
from rfaas import config, config_sources, config_text
from rfaas.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

TREE = Path(rfaas.__file__).parent.parent


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment without a configuration."""
    return {"XDG_CONFIG_HOME": str(tmp_path / "none"), "RFAAS_RUNTIME_DIR": str(tmp_path)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rfaas.toml"


def fault(
    path: Path | None = None,
    environ: Mapping[str, str] = {},
    overrides: Mapping[str, object] = {},
) -> str:
    """What `load` says: the error's text and hint, with the file named `rfaas.toml`."""
    with pytest.raises(ConfigError) as caught:
        config.load(str(path) if path else os.devnull, environ, overrides)
    return str(caught.value).replace(f"{path}", "rfaas.toml")


# Precedence ---------------------------------------------------------------


def test_defaults(environ: dict[str, str], tmp_path: Path) -> None:
    loaded = config.load(environ=environ | {"USER": "ada", "RFAAS_STATE_DIR": "/var/lib/rfaas"})
    host = os.uname().nodename
    assert loaded.config.resource_manager.address == f"unix:{tmp_path}/resource-manager.sock"
    assert loaded.config.resource_manager.store == "/var/lib/rfaas/resource-manager.sqlite"
    assert loaded.config.executor.name == host
    assert loaded.config.executor.address == f"unix:{tmp_path}/executor-{host}.sock"
    assert loaded.config.executor.resource_manager == loaded.config.resource_manager.address
    assert loaded.config.executor.cores == loaded.config.executor.memory == "all"
    assert loaded.config.client.name == f"ada@{host}:{os.getpid()}"
    assert loaded.config.client.resource_manager == loaded.config.client.executor == ""
    assert loaded.config.lease == config.LeaseConfig(cores=1, memory=1 << 30, isolation="default")
    assert loaded.config.lane == config.LaneConfig(
        slots=16, slot_bytes=16 << 20, hot_timeout_ms=100, transport="auto"
    )
    assert loaded.config.log.level == "info"
    assert set(loaded.origin.values()) == {"default"}


def test_flag_over_environment_over_file_over_default(environ: dict[str, str], file: Path) -> None:
    file.write_text("[lane]\nslots = 2\nhot_timeout_ms = 2\nslot_bytes = '8KiB'\n")
    environ |= {"RFAAS_LANE_SLOTS": "3", "RFAAS_LANE_HOT_TIMEOUT_MS": "3"}
    loaded = config.load(str(file), environ, {"lane.slots": 4, "lane.transport": None})
    assert loaded.config.lane == config.LaneConfig(slots=4, hot_timeout_ms=3, slot_bytes=8192)
    assert {name: text for name, text in loaded.origin.items() if name.startswith("lane.")} == {
        "lane.slots": "flag",
        "lane.slot_bytes": f"file {file}",
        "lane.hot_timeout_ms": "environment RFAAS_LANE_HOT_TIMEOUT_MS",
        "lane.transport": "default",
    }


def test_file_given_then_variable_then_home(environ: dict[str, str], tmp_path: Path) -> None:
    found = []
    files = [tmp_path / name for name in ("given.toml", "variable.toml", "none/rfaas/rfaas.toml")]
    for slots, path in enumerate(files, start=1):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"lane.slots = {slots}\n")
    for given, variable in ((files[0], files[1]), (None, files[1]), (None, "")):
        environ["RFAAS_CONFIG"] = str(variable)
        loaded = config.load(str(given) if given else None, environ)
        found.append((loaded.config.lane.slots, loaded.origin["lane.slots"]))
    assert found == [(slots, f"file {path}") for slots, path in enumerate(files, start=1)]


def test_home_is_searched_where_xdg_is_silent(tmp_path: Path) -> None:
    path = tmp_path / ".config/rfaas/rfaas.toml"
    path.parent.mkdir(parents=True)
    path.write_text("lane.slots = 5\n")
    assert config.load(environ={"HOME": str(tmp_path)}).config.lane.slots == 5


def test_texts_from_environment_and_flags(environ: dict[str, str]) -> None:
    environ |= {
        "RFAAS_EXECUTOR_CORES": "all",
        "RFAAS_EXECUTOR_MEMORY": "1.5 GiB",
        "RFAAS_EXECUTOR_RESOURCE_MANAGER": "none",
        "RFAAS_CLIENT_CALL_TIMEOUT_S": "2",
    }
    flags = {"lane.slot_bytes": "4MiB", "lane.hot_timeout_ms": "-1", "executor.name": "17"}
    loaded = config.load(environ=environ, overrides=flags).config
    assert (loaded.executor.cores, loaded.executor.memory) == ("all", 3 << 29)
    assert (loaded.executor.resource_manager, loaded.executor.name) == ("none", "17")
    assert loaded.client.call_timeout_s == 2.0
    assert (loaded.lane.slot_bytes, loaded.lane.hot_timeout_ms) == (4 << 20, -1)


def test_slot_bytes_are_whole_pages(environ: dict[str, str]) -> None:
    assert config.LaneConfig(slot_bytes=1).slot_bytes == 4096
    flags = {"lane.slot_bytes": 4097}
    assert config.load(environ=environ, overrides=flags).config.lane.slot_bytes == 8192


# Wrong values -------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("lane.slots", "9000", "value is too large (9000), at most 4096 is allowed"),
        ("lane.slots", "0", "value is too small (0), at least 1 is required"),
        ("lane.slots", "'16'", "expected an integer, got a string ('16')"),
        ("lane.slots", "16.0", "expected an integer, got a number (16.0)"),
        ("lane.slots", "true", "expected an integer, got a boolean"),
        ("lane.slots", "[]", "expected an integer, got an array"),
        ("lane.slots", "{a = 1}", "expected an integer, got a table"),
        ("lane.slots", "2026-01-01", "expected an integer, got a date or time"),
        (
            "lane.slot_bytes",
            "2147483649",
            "value is too large (2147483649), at most 2147483648 (2 GiB) is allowed",
        ),
        ("lane.slot_bytes", "'0B'", "value is too small (0), at least 1 is required"),
        ("lane.slot_bytes", "'big'", "expected a size such as \"16MiB\", got a string ('big')"),
        ("lane.hot_timeout_ms", "-2", "value is too small (-2), at least -1 is required"),
        (
            "lane.hot_timeout_ms",
            "2147483648",
            "value is too large (2147483648), at most 2147483647 is allowed",
        ),
        (
            "lane.transport",
            "'smh'",
            "value is unknown ('smh'), allowed are auto, shm, verbs\nhint: did you mean shm?",
        ),
        ("lane.transport", "3", "expected one of auto, shm, verbs, got an integer (3)"),
        ("executor.cores", "0", "value is too small (0), at least 1 is required"),
        ("executor.cores", "-1", "value is too small (-1), at least 1 is required"),
        ("executor.cores", "65537", "value is too large (65537), at most 65536 is allowed"),
        ("executor.cores", "'most'", "expected an integer or \"all\", got a string ('most')"),
        (
            "executor.memory",
            "'most'",
            'expected a size such as "16MiB" or "all", got a string (\'most\')',
        ),
        (
            "lease.memory",
            "'2 EiB'",
            (
                "value is too large (2305843009213693952), "
                "at most 1152921504606846976 (1 EiB) is allowed"
            ),
        ),
        ("client.call_timeout_s", "nan", "value is not a number (nan)"),
        ("client.call_timeout_s", "inf", "value is too large (inf), at most 315360000 is allowed"),
        ("client.call_timeout_s", "-1", "value is too small (-1), at least 0 is required"),
        ("client.call_timeout_s", "'1'", "expected a number, got a string ('1')"),
        (
            "executor.name",
            "'a/b'",
            (
                "value has a character that is not allowed ('a/b')\n"
                "hint: letters, digits and . _ @ : + - are allowed"
            ),
        ),
        ("executor.name", "3", "expected a string, got an integer (3)"),
        (
            "resource_manager.store",
            '"a\\u0000"',
            "value has a character that is not allowed ('a\\x00')",
        ),
        (
            "client.executor",
            "'ofi:node7:1'",
            (
                "address is not understood ('ofi:node7:1'), unix:/absolute/path, tcp:HOST:PORT "
                "and verbs:HOST:PORT are allowed"
            ),
        ),
        (
            "client.executor",
            "'tcp:*:7471'",
            "address tcp:*:7471 is one to listen at: it needs a host and a port",
        ),
        (
            "executor.address",
            "'tcp:fe80::1:7471'",
            (
                "address is not understood ('tcp:fe80::1:7471'), tcp:HOST:PORT is allowed\n"
                "hint: HOST is a name, an IPv4 address, an IPv6 address in brackets, or * to listen"
            ),
        ),
        ("lane.slot", "3", "unknown key\nhint: did you mean slots, slot_bytes?"),
        ("zzz", "1", "unknown section"),
        ("lane", "3", "expected a table, got an integer (3)"),
    ],
)
def test_wrong_value_in_a_file(file: Path, key: str, value: str, text: str) -> None:
    file.write_text(f"{key} = {value}")
    assert fault(file) == f"rfaas.toml: {key}: {text}"


@pytest.mark.parametrize(
    ("toml", "text"),
    [
        (
            "client.spin_us = 0x" + "f" * 4000,
            "client.spin_us: value is too large (...), at most 1000000 is allowed",
        ),
        (
            f"executor.name = '{'a' * 129}'",
            "executor.name: value is too long (129), at most 128 is allowed",
        ),
        (
            f"executor.address = 'unix:/{'a' * 107}'",
            (
                "executor.address: socket path is too long (108 bytes), at most 107 are allowed: "
                f"/{'a' * 107}\n"
                "hint: set RFAAS_RUNTIME_DIR to a directory with a short name"
            ),
        ),
        ("[lan]", "lan: unknown section\nhint: did you mean lane?"),
        ("[[lane]]\nslots = 3", "lane: expected a table, got an array"),
        (
            "lane.slots = 3\nlane.transport = 1",
            "lane.transport: expected one of auto, shm, verbs, got an integer (1)",
        ),
        (
            f"log.level = '{'x' * 200}'",
            (
                "log.level: value is unknown "
                f"('{'x' * 79}...), allowed are debug, info, warning, error"
            ),
        ),
    ],
)
def test_wrong_file(file: Path, toml: str, text: str) -> None:
    file.write_text(toml)
    assert fault(file) == f"rfaas.toml: {text}"


@pytest.mark.parametrize(
    ("variable", "value", "text"),
    [
        ("LANE_SLOTS", "9000", "value is too large (9000), at most 4096 is allowed"),
        ("LANE_SLOTS", "many", "expected an integer, got a string ('many')"),
        ("LANE_SLOTS", "", "expected an integer, got a string ('')"),
        (
            "LANE_SLOT",
            "3",
            ("unknown variable\nhint: did you mean RFAAS_LANE_SLOTS, RFAAS_LANE_SLOT_BYTES?"),
        ),
        (
            "LAN_SLOTS",
            "3",
            ("unknown variable\nhint: did you mean RFAAS_LANE_SLOTS, RFAAS_LANE_SLOT_BYTES?"),
        ),
        (
            "CLIENT_EXECUTOR",
            "\udcff",
            (
                "address is not understood ('\\udcff'), unix:/absolute/path, tcp:HOST:PORT "
                "and verbs:HOST:PORT are allowed"
            ),
        ),
        (
            "EXECUTOR_NAME",
            "\udcff",
            (
                "value has a character that is not allowed ('\\udcff')\n"
                "hint: letters, digits and . _ @ : + - are allowed"
            ),
        ),
    ],
)
def test_wrong_value_in_the_environment(variable: str, value: str, text: str) -> None:
    assert fault(environ={f"RFAAS_{variable}": value}) == f"RFAAS_{variable}: {text}"


def test_other_variables_are_let_be(environ: dict[str, str]) -> None:
    environ |= dict.fromkeys(("RFAAS_PYTHON", "RFAAS_TEST_SEED", "RFAAS_LOG", "LANE_SLOTS"), "x")
    assert set(config.load(environ=environ).origin.values()) == {"default"}


def test_wrong_flag() -> None:
    assert fault(overrides={"lane.slots": "9000"}) == (
        "flag lane.slots: value is too large (9000), at most 4096 is allowed"
    )
    assert fault(overrides={"lane.slot": None}) == (
        "flag lane.slot: unknown key\nhint: did you mean lane.slots, lane.slot_bytes?"
    )


def test_a_wrong_value_is_refused_where_another_beats_it(file: Path) -> None:
    file.write_text("lane.slots = 9000")
    assert fault(file, {"RFAAS_LANE_SLOTS": "3"}).startswith("rfaas.toml: lane.slots: value is too")


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("lane.slots", 1, 4096),
        ("lane.slot_bytes", 1, 1 << 31),
        ("lane.hot_timeout_ms", -1, (1 << 31) - 1),
        ("lease.cores", 1, 65536),
        ("lease.memory", 1, 1 << 60),
        ("executor.workers_crashed_max", 1, 1_000_000),
        ("client.spin_us", 0, 1_000_000),
        ("client.call_timeout_s", 0, 315360000),
        ("client.lease_duration_s", 0.1, 315360000),
        ("resource_manager.heartbeat_s", 0.01, 3600),
        ("resource_manager.missed_beats_max", 1, 1000),
    ],
)
def test_bounds(environ: dict[str, str], name: str, least: float, most: float) -> None:
    for value in (least, most):
        assert config.load(environ=environ, overrides={name: value}).origin[name] == "flag"
    assert "value is too small" in fault(overrides={name: least - 1})
    assert "value is too large" in fault(overrides={name: most + 1})


# Files --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (
            b"[lane]\nslots 3\n",
            ("expected '=' after a key in a key/value pair (at line 2, column 7)"),
        ),
        (b"lane.slots =", "invalid value (at end of document)"),
        (b"x = " + b"[" * 100_000, "nested too deeply"),
    ],
)
def test_not_toml(file: Path, data: bytes, text: str) -> None:
    file.write_bytes(data)
    assert fault(file) == f"rfaas.toml: not TOML: {text}"


def test_not_utf8(file: Path) -> None:
    file.write_bytes(b"# a\n# \xff\n")
    assert fault(file) == "rfaas.toml: line 2 is not UTF-8"


def test_file_too_large(file: Path) -> None:
    file.write_bytes(b"#" * config_sources.CONFIG_BYTES_MAX)
    config.load(str(file), {})
    file.write_bytes(b"#" * (config_sources.CONFIG_BYTES_MAX + 1))
    assert fault(file) == "rfaas.toml: file is too large, at most 1048576 bytes are allowed"


def test_unreadable_files(tmp_path: Path) -> None:
    assert fault(tmp_path / "no") == "cannot read rfaas.toml: ENOENT (No such file or directory)"
    assert fault(tmp_path) == "cannot read rfaas.toml: EISDIR (Is a directory)"


def test_the_sample_file_holds_every_key_at_its_default(
    environ: dict[str, str], file: Path
) -> None:
    text = config_text.default_text()
    assert text == (TREE / "etc/rfaas.toml").read_text()
    without_file = config.load(os.devnull, environ)

    file.write_text(text)
    loaded = config.load(str(file), environ)
    assert (loaded.config, loaded.origin) == (without_file.config, without_file.origin)

    # A line that is TOML once its "# " is gone is a key; the others are prose.
    file.write_text(re.sub(r"^# ([a-z_]+ = )", r"\1", text, flags=re.MULTILINE))
    loaded = config.load(str(file), environ)
    assert loaded.config == without_file.config
    assert set(loaded.origin.values()) == {f"file {file}"}


def test_show(environ: dict[str, str]) -> None:
    table = config_text.show(config.load(environ=environ, overrides={"lane.slots": 4}))
    rows = [re.split(r"\s{2,}", line) for line in table.splitlines()]
    assert ["lane.slots", "4", "flag"] in rows
    assert ["lane.transport", '"auto"', "default"] in rows
    assert len(rows) == sum(
        len(getattr(config.Config(), name).__struct_fields__)
        for name in config.Config.__struct_fields__
    )


def test_a_record_refuses_what_it_does_not_know() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"lane": {"slot": 1}}, config.Config)


# Imports ------------------------------------------------------------------


def test_import_is_light() -> None:
    paths = [str(TREE), str(Path(msgspec.__file__).parent.parent)]
    code = f"import sys; sys.path += {paths!r}; import rfaas.config; print(*sys.modules)"
    command = [sys.executable, "-I", "-S", "-c", code]
    modules = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    heavy = {"tomllib", "tomli", "asyncio", "logging", "socket", "dataclasses"}
    assert not heavy.intersection(modules)
