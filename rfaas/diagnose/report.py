"""How devices and findings are shown: tables for people, a TOML block, one JSON object a line."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from typing import get_args, get_type_hints

from rfaas.config import Config
from rfaas.diagnose.checks import USES, blocked
from rfaas.diagnose.records import Device, Facts, Finding, Node, Port

DEVICE_HEAD = (
    *("device", "kind", "state", "link", "speed", "netdev", "addresses"),
    *("QPs", "MRs", "inline", "atomics"),
)
GID_HEAD = ("device", "port", "index", "kind", "GID")
UNKNOWN = "?"


def devices_table(nodes: Sequence[Node]) -> str:
    """Devices with what matters of them, then their GIDs; with hosts where they are several."""
    lead = ("host",) if len(nodes) > 1 else ()
    rows, gids, notes = [], [], []
    for node in nodes:
        host = (node.host,) if lead else ()
        if node.problem:
            notes.append(f"{node.host}: {node.problem}")
        if node.rdma_core:
            notes.append(f"{node.host}: {node.rdma_core}")
        for device in node.devices:
            rows += [(*host, *row) for row in _device_rows(device)]
            gids += [(*host, *row) for row in _gid_rows(device)]
            if device.limits_unknown:
                notes.append(f"{device.name}: limits are unknown: {device.limits_unknown}")
    parts = []
    if rows:
        parts.append(table((*lead, *DEVICE_HEAD), rows))
    if gids:
        parts.append(table((*lead, *GID_HEAD), gids))
    if notes:
        parts.append("\n".join(notes))
    return "\n\n".join(parts)


def _device_rows(device: Device) -> Iterator[tuple[str, ...]]:
    limits = device.limits
    known = (
        (str(limits.qp_max), str(limits.mr_max), f"{limits.inline_bytes_max} B", limits.atomics)
        if limits
        else (UNKNOWN,) * 4
    )
    for port in device.ports:
        name = device.name if len(device.ports) == 1 else f"{device.name}/{port.number}"
        yield (
            *(name, device.transport, port.state, port.link_layer, _speed(port)),
            *(_netdev(port), " ".join(port.hosts) or "-", *known),
        )


def _gid_rows(device: Device) -> Iterator[tuple[str, ...]]:
    for port in device.ports:
        for gid in port.gids:
            yield device.name, str(port.number), str(gid.index), gid.kind, shorter(gid.gid)


def shorter(gid: str) -> str:
    """A GID as addresses are written; one that holds an IPv4 address shows it."""
    try:
        address = ipaddress.IPv6Address(gid)
    except ValueError:
        return gid
    return f"::ffff:{address.ipv4_mapped}" if address.ipv4_mapped else str(address)


def _speed(port: Port) -> str:
    return port.speed.partition(" (")[0].replace("/sec", "/s") or UNKNOWN


def _netdev(port: Port) -> str:
    if not port.netdev:
        return "-"
    if not port.is_netdev_here:
        return f"{port.netdev} (elsewhere)"
    return port.netdev if port.is_netdev_up else f"{port.netdev} (down)"


def gigabits(device: Device) -> float:
    """Gigabits per second of its fastest port that is active; 0 where none is."""
    found = [0.0]
    for port in device.ports:
        number, _, unit = port.speed.partition(" ")
        try:
            if port.is_active and unit.startswith("Gb"):
                found.append(float(number))
        except ValueError:
            continue
    return max(found)


def is_usable(device: Device) -> bool:
    """Whether invocations can travel by it."""
    return device.has_write_with_imm and device.can_open and bool(device.hosts)


def best_device(devices: Iterable[Device]) -> Device | None:
    """The fastest that can be used; of equals the first."""
    return max(filter(is_usable, devices), key=gigabits, default=None)


def toml_block(node: Node) -> str:
    """What to put into rfaas.toml on that node; "" where no device can be used.

    The keys are those that the configuration declares: those named `device`, and
    `transport` where it knows "verbs".
    """
    device = best_device(node.devices)
    if device is None:
        return ""
    port = next(port for port in device.ports if port.is_active and port.hosts)
    about = f"{device.transport}, {_speed(port)}, {port.netdev} {port.hosts[0]}"
    lines = [f"# {node.host}: {device.name} ({about})"]
    others = [other.name for other in node.devices if other is not device]
    if others:
        lines.append(f"# also there: {', '.join(others)}")
    found = [*_keys_for(device)]
    for section in dict.fromkeys(section for section, _ in found):
        lines += ["", f"[{section}]", *(line for owner, line in found if owner == section)]
    if not found:
        lines.append("# this version of rFaaS has no key for it")
    return "\n".join(lines)


def _keys_for(device: Device) -> Iterator[tuple[str, str]]:
    defaults = Config()
    for section in Config.__struct_fields__:
        hints = get_type_hints(type(getattr(defaults, section)), include_extras=True)
        for key, hint in hints.items():
            if key == "device":
                yield section, f'device = "{device.name}"'
            elif key == "transport" and "verbs" in get_args(hint):
                yield section, 'transport = "verbs"'


def knows_verbs() -> bool:
    """Whether the configuration has a transport "verbs"."""
    hints = get_type_hints(type(Config().lane), include_extras=True)
    return "verbs" in get_args(hints["transport"])


def findings_text(facts: Facts, findings: Sequence[Finding]) -> str:
    """One line for each finding with what it blocks, its remedies below, the verdict last."""
    marks = [_mark(finding) for finding in findings]
    widths = max(map(len, marks)), max(len(finding.check) for finding in findings)
    lines = [f"{facts.host}: Linux {facts.kernel}, {facts.cores} cores", ""]
    for mark, finding in zip(marks, findings, strict=True):
        lines.append(f"{mark:{widths[0]}}  {finding.check:{widths[1]}}  {finding.text}")
        lines += [" " * (sum(widths) + 4) + f"-> {line}" for line in finding.mend]
    return "\n".join([*lines, "", verdict(findings)])


def _mark(finding: Finding) -> str:
    if "shm" in finding.blocks:
        return "no"
    if finding.blocks:
        return f"no {finding.blocks[0]}"
    return "hint" if finding.is_hint else "ok"


def verdict(findings: Sequence[Finding]) -> str:
    """`shm can work; verbs cannot work; ...`."""
    is_blocked = blocked(list(findings))
    return "; ".join(f"{use} {'cannot' if is_blocked[use] else 'can'} work" for use in USES)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they must be."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    )
