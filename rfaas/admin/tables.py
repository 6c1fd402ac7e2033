"""`rfaas nodes`, `leases`, `bills`, `events`, `status`: tables or JSON, once or again and again."""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct, json, structs

from rfaas import terminal
from rfaas.client import Session, reports
from rfaas.config import Config
from rfaas.core.billing import GROUPS, parse_day
from rfaas.errors import UnavailableError, UsageError
from rfaas.proto.messages import LeaseReport, NodeReport, StatusReport
from rfaas.proto.report_messages import BillReport, EventReport
from rfaas.units import format_bytes

WATCH_MIN_S = 0.1
HOME = "\x1b[H\x1b[J"  # to the top left, and all below is gone

NODE = ("NODE", "STATE", "CORES FREE", "GPUS FREE", "MEMORY FREE", "LEASES", "BEAT", "ADDRESS")
LEASE = (
    "LEASE",
    "STATE",
    "CLIENT",
    "NODE",
    "CORES",
    "GPUS",
    "MEMORY",
    "ISOLATION",
    "LEFT",
    "CALLS",
)
EVENT = ("TIME", "EVENT", "NODE", "LEASE", "CLIENT", "CORES", "CAUSE")
BILL = (
    *("DAY", "CLIENT", "LEASE", "NODE", "ALLOCATED", "POLLING", "EXECUTING", "GPUS", "CALLS"),
    "COST",
)
NUMBERS = {
    "LEASES",
    "CORES",
    "GPUS",
    "LEFT",
    "CALLS",
    "ALLOCATED",
    "POLLING",
    "EXECUTING",
    "COST",
    "BEAT",
}


class Table(NamedTuple):
    """What a command found: records, and how to show them."""

    records: Sequence[Struct]
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    nothing: str


def run(config: Config, options: argparse.Namespace) -> int:
    """Run one of these commands; returns the exit status."""
    if options.command == "top":
        from rfaas.admin import top

        return top.run(config, options)
    if options.command == "logs":
        return _logs(config, options)
    watch_s = options.watch
    if watch_s is not None and not watch_s >= WATCH_MIN_S:
        raise UsageError(f"--watch is at least {WATCH_MIN_S:g} s, not {watch_s:g}")
    with connected(config, options.command) as session:
        while True:
            text = terminal.shown(_shown(session, options), sys.stdout)
            if watch_s is not None and sys.stdout.isatty() and not options.json:
                text = HOME + text
            sys.stdout.write(text)
            sys.stdout.flush()
            if watch_s is None:
                return 0
            time.sleep(watch_s)


def _logs(config: Config, options: argparse.Namespace) -> int:
    """What each worker of a lease wrote; where there are several, stderr says which comes."""
    from rfaas.client.logs import outputs_of

    with connected(config, options.command) as session:
        found = outputs_of(session, options.lease)
    for number, written in enumerate(found, start=1):
        if len(found) > 1:
            text = f"rfaas: worker {number} of the {len(found)} last, {len(written.data)} bytes:"
            print(text, file=sys.stderr, flush=True)
        data = written.data
        sys.stdout.buffer.write(
            terminal.Harmless().feed(data, last=True) if sys.stdout.isatty() else data
        )
        sys.stdout.flush()
    return 0


def connected(config: Config, command: str) -> Session:
    """A session with whoever is configured; a private executor would only tell of itself."""
    client = config.client
    if not client.executor and not client.resource_manager:
        client = structs.replace(client, resource_manager=config.resource_manager.address)
    if client.executor == "private":
        raise UnavailableError(
            f"a private executor has no {command}", hint="leave out --executor private"
        )
    return Session(structs.replace(config, client=client))


def _shown(session: Session, options: argparse.Namespace) -> str:
    if options.command == "status":
        report = session.status()
        return json.encode(report).decode() + "\n" if options.json else status_text(report)
    table = _table(session, options)
    if options.json:
        return "".join(json.encode(record).decode() + "\n" for record in table.records)
    if getattr(options, "csv", False):
        return _csv(table.records)
    if not table.rows:
        if options.watch is None:
            print(table.nothing, file=sys.stderr)
            return ""
        return table.nothing + "\n"
    return text_of(table.head, table.rows)


def _table(session: Session, options: argparse.Namespace) -> Table:
    match options.command:
        case "nodes":
            nodes = session.nodes()
            return Table(nodes, NODE, list(map(node_row, nodes)), "no node has joined yet")
        case "leases":
            leases = session.leases(all=options.all)
            return Table(leases, LEASE, list(map(lease_row, leases)), "no lease is live")
        case "events":
            events = reports.events(session, -options.last)
            return Table(events, EVENT, list(map(event_row, events)), "nothing has happened yet")
    return _bills(session, options)


def _bills(session: Session, options: argparse.Namespace) -> Table:
    now_s = time.time()
    since = parse_day(options.since, now_s)
    until = parse_day(options.until, now_s) if options.until else ""
    bills = reports.bills(session, options.client, since, until)
    if options.by:
        bills = summed(bills, options.by)
    rows = [bill_row(bill) for bill in bills]
    if len(bills) > 1:
        rows.append(bill_row(together(bills), total=True))
    return Table(bills, BILL, rows, f"nobody used anything since {since}")


def summed(bills: Sequence[BillReport], by: str) -> list[BillReport]:
    """Bills put together by one of GROUPS, in its order."""
    if by not in GROUPS:
        raise UsageError(f"bills cannot be summed by {by!r}, only by {', '.join(GROUPS)}")
    groups: dict[str, list[BillReport]] = {}
    for bill in bills:
        groups.setdefault(getattr(bill, by), []).append(bill)
    return [together(groups[key]) for key in sorted(groups)]


def together(bills: Sequence[BillReport]) -> BillReport:
    """The sum of bills; what differs among them is ""."""

    def same(field: str) -> str:
        found = {getattr(bill, field) for bill in bills}
        return found.pop() if len(found) == 1 else ""

    return BillReport(
        day=same("day"),
        client=same("client"),
        lease=same("lease"),
        node=same("node"),
        allocated_s=sum(bill.allocated_s for bill in bills),
        polling_s=sum(bill.polling_s for bill in bills),
        executing_s=sum(bill.executing_s for bill in bills),
        calls=sum(bill.calls for bill in bills),
        failed=sum(bill.failed for bill in bills),
        cost=sum(bill.cost for bill in bills),
        currency=same("currency"),
        gpu_s=sum(bill.gpu_s for bill in bills),
    )


# Rows ---------------------------------------------------------------------------


def node_row(node: NodeReport) -> tuple[str, ...]:
    memory = f"{format_bytes(node.memory_free_bytes)} of {format_bytes(node.memory_bytes)}"
    cores = f"{node.cores_free} of {node.cores}"
    if node.shared or node.shared_free:
        cores += f" (shared: {node.shared_free} of {node.shared + node.shared_free})"
    beat = f"{node.beat_age_s:.1f} s"
    gpus = f"{node.gpus_free} of {node.gpus}" if node.gpus else ""
    return (node.node, node.state, cores, gpus, memory, str(node.leases), beat, node.address)


def lease_row(lease: LeaseReport) -> tuple[str, ...]:
    memory, left = format_bytes(lease.memory_bytes), f"{lease.remaining_s:.0f} s"
    return (
        lease.lease[:8],
        lease.state,
        lease.client,
        lease.node,
        f"{lease.cores} shared" if lease.shared else str(lease.cores),
        str(lease.gpus or ""),
        memory,
        lease.isolation + (f" (without {', '.join(lease.lacks)})" if lease.lacks else ""),
        left,
        str(lease.usage.calls),
    )


def event_row(event: EventReport) -> tuple[str, ...]:
    when = time.strftime("%F %T", time.localtime(event.at_s))
    cores = str(event.cores or "")
    lease = event.lease[:8]
    return (when, event.kind, event.node, lease, event.client, cores, event.cause)


def bill_row(bill: BillReport, *, total: bool = False) -> tuple[str, ...]:
    times = (bill.allocated_s, bill.polling_s, bill.executing_s)
    cost = f"{bill.cost:.6g} {bill.currency}".rstrip() if bill.cost or bill.currency else ""
    return (
        "total" if total else bill.day,
        bill.client,
        bill.lease[:8],
        bill.node,
        *(f"{seconds:.3f} s" for seconds in times),
        f"{bill.gpu_s:.3f} s" if bill.gpu_s else "",
        str(bill.calls),
        cost,
    )


def status_text(report: StatusReport) -> str:
    lines = [
        f"{report.role} {report.name}, version {report.version}, pid {report.pid}",
        f"at {report.address}, up for {report.uptime_s:.0f} s",
    ]
    for fact, value in report.facts.items():
        lines.append(f"{fact}: {value:g}" if isinstance(value, float) else f"{fact}: {value}")
    return "\n".join(lines) + "\n"


def text_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in columns; numbers are put under each other from the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for row in (head, *rows):
        cells = (
            cell.rjust(width) if name in NUMBERS else cell.ljust(width)
            for cell, width, name in zip(row, widths, head, strict=True)
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"


def _csv(records: Sequence[Struct]) -> str:
    class Text(list[str]):
        write = list.append

    written = Text()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(BillReport.__struct_fields__)
    for record in records:
        writer.writerow(structs.astuple(record))
    return "".join(written)
