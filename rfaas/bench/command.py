"""`rfaas bench`: run a measurement, print it as a table or as one JSON object."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from msgspec import json

from rfaas.bench import measure
from rfaas.client import Session
from rfaas.config import Config
from rfaas.errors import UsageError
from rfaas.proto import wire
from rfaas.units import format_bytes, format_ns

CALLS = {
    "hot": 100_000,
    "warm": 1_000,
    "cold": 30,
    "throughput": 2_000_000,
    "payload": 1,
    "leases": 20_000,
    "faults": 25,
}
SIZE_MAX = 1 << 30


def run(config: Config, options: argparse.Namespace) -> int:
    """Measure what was asked for; returns the exit status."""
    size_max = wire.INLINE_BYTES_MAX if options.what == "warm" else SIZE_MAX
    calls = CALLS[options.what] if options.calls is None else options.calls
    for flag, value, least, most in (
        ("--size", options.size, 1, size_max),
        ("--inflight", options.inflight, 1, wire.SLOTS_MAX - 1),
        ("--calls", calls, 1, 2**31),
        ("--clients", options.clients, 1, 1024),
        ("--nodes", options.nodes, 1, 1024),
        ("--pause-ms", options.pause_ms, 0, 60_000),
    ):
        if not least <= value <= most:
            raise UsageError(
                f"{flag}: value is out of bounds ({value}), {least} to {most} is allowed"
            )
    if options.what == "leases":
        report = _leases(options, calls)
    elif options.what == "faults":
        from rfaas.bench import faults

        report = faults.run(config, calls)
    else:
        with Session(config) as session:
            report = _measure(session, options, calls)
    print(json.encode(report).decode() if options.json else "\n".join(_table(report)))
    return 0


def _measure(session: Session, options: argparse.Namespace, calls: int) -> dict[str, Any]:
    match options.what:
        case "hot":
            return measure.hot(session, options.size, calls)
        case "warm":
            return measure.warm(session, options.size, calls)
        case "cold":
            return measure.cold(session, calls, options.pause_ms / 1e3)
        case "throughput":
            return measure.throughput(session, options.size, calls, options.inflight)
    return measure.payload(session)


def _leases(options: argparse.Namespace, pairs: int) -> dict[str, Any]:
    from rfaas.bench import leases  # with asyncio, which the others do without

    if options.ledger:
        return leases.ledger()
    return leases.manager(options.clients, options.nodes, pairs)


def _table(report: Mapping[str, Any]) -> list[str]:
    """The report for people."""
    lines = []
    for key, value in report.items():
        if key == "levels":
            lines += [line for level in value for line in _level(level)]
        elif key == "rows":
            lines += [line for row in value for line in _row(row)]
        elif key == "nodes" and isinstance(value, list):
            lines += [
                "  ".join(f"{name} {figure:,}" for name, figure in row.items()) for row in value
            ]
        elif isinstance(value, dict) and "median" in value:
            lines.append(f"{key:22}{_stats(key, value)}")
        elif isinstance(value, dict):
            lines.append(key)
            lines += [f"  {name:24}{_entry(key, entry)}" for name, entry in value.items()]
        elif key.endswith("_ns"):
            lines.append(f"{key:22}{format_ns(round(value))}")
        else:
            lines.append(f"{key:22}{value}")
    return lines


def _entry(key: str, entry: Any) -> str:
    if isinstance(entry, dict):
        return _stats(key, entry)
    return f"{entry:,.0f}" if isinstance(entry, float) else f"{entry}"


def _row(row: Mapping[str, Any]) -> list[str]:
    lines = [format_bytes(row["size_bytes"])]
    lines += [f"  {name:20}{_stats(name, entry)}" for name, entry in row.items() if "_ns" in name]
    lines += [
        f"  {name:20}{format_bytes(round(value))}/s"
        for name, value in row.items()
        if name.endswith("_bytes_per_s")
    ]
    if "ratio" in row:
        lines.append(f"  {'ratio':20}{row['ratio']}")
    return lines


def _level(level: Mapping[str, Any]) -> list[str]:
    """What each fault came to at one level of isolation."""
    lines = [str(level["isolation"])]
    for name, value in level.items():
        if isinstance(value, dict):
            lines += [f"  {name:10}{key:10}{_stats(key, entry)}" for key, entry in value.items()]
        elif name != "isolation" and value not in ("", []):
            lines.append(f"  {name:20}{value}")
    return lines


def _stats(key: str, entry: Mapping[str, float]) -> str:
    scale = 1e6 if key.endswith("_ms") else 1
    return "  ".join(
        f"{name} {format_ns(round(value * scale)):>9}" for name, value in entry.items()
    )
