"""`rfaas top`: nodes, leases, calls and events in a terminal, live.

In colour with rich where that is installed, plain where it is not or the output
is no terminal; what is shown is the same, and each state has a sign of its own.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from msgspec import Struct, json

from rfaas.admin.tables import HOME, connected, event_row, text_of
from rfaas.client import Session, reports
from rfaas.config import Config
from rfaas.errors import PeerLostError, UnavailableError
from rfaas.proto.messages import LeaseReport, NodeReport, StatusReport
from rfaas.proto.report_messages import EventReport, Sample
from rfaas.terminal import harmless
from rfaas.units import format_ns

PERIOD_S = 1.0
BAR_MIN, BAR_MAX = 8, 48  # characters
EVENTS_SHOWN = 8
SIGNS = {"hot": "#", "leased": "=", "free": ".", "draining": "-", "lost": "x"}
BLOCKS = "▁▂▃▄▅▆▇█"
LEASE = ("LEASE", "STATE", "CLIENT", "NODE", "CORES", "CALLS", "LEFT")


class Picture(Struct, frozen=True, kw_only=True):
    """All that is shown, as of one moment."""

    status: StatusReport
    nodes: Sequence[NodeReport]
    hot: dict[str, float]
    leases: Sequence[LeaseReport]
    samples: Sequence[Sample]
    events: Sequence[EventReport]


def run(config: Config, options: argparse.Namespace) -> int:
    """Show it until q or Ctrl-C is typed; returns the exit status."""
    show, close = _shower(options)
    with _unwound(), connected(config, "top") as session, _keys(options) as is_quit_in:
        try:
            while (picture := take(session, is_quit_in)) is not None:
                show(picture)
                if options.once or is_quit_in(PERIOD_S):
                    break
        finally:
            close()
    return 0


@contextmanager
def _unwound() -> Iterator[None]:
    """Have SIGTERM and SIGHUP end the block as Ctrl-C does: the terminal is given back first."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)  # as shells report it

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _keys(options: argparse.Namespace) -> Iterator[Callable[[float], bool]]:
    """Waits for so many seconds, or until q is typed, and says whether it was.

    The terminal gives each key at once and does not show it, until the end of the block.
    """
    if options.once or options.json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield _sleep
        return
    import termios  # not what a pipe needs
    import tty

    before = termios.tcgetattr(0)
    tty.setcbreak(0)
    try:
        yield _is_quit_in
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _sleep(wait_s: float) -> bool:
    time.sleep(wait_s)
    return False


def _is_quit_in(wait_s: float) -> bool:
    give_up_at = time.monotonic() + wait_s
    while select.select([0], [], [], max(0.0, give_up_at - time.monotonic()))[0]:
        if os.read(0, 64).lower() in (b"", b"q"):  # "": the terminal is gone
            return True
    return False


def take(session: Session, is_quit_in: Callable[[float], bool]) -> Picture | None:
    """Ask for all of it; a manager that is away is waited for, None: no more."""
    missed = False
    while True:
        try:
            activity = reports.activity(session)
            return Picture(
                status=session.status(),
                nodes=session.nodes(),
                hot=activity.hot,
                leases=sorted(session.leases(), key=lambda lease: lease.remaining_s),
                samples=activity.samples,
                events=reports.events(session, -EVENTS_SHOWN),
            )
        except (PeerLostError, UnavailableError):
            if not missed:
                print("rfaas: lost the resource manager, looking for it", file=sys.stderr)
            missed = True
            if is_quit_in(PERIOD_S):
                return None


def _shower(options: argparse.Namespace) -> tuple[Callable[[Picture], None], Callable[[], None]]:
    """What shows a picture, and what gives the terminal back."""

    def nothing() -> None:
        pass

    if options.json:
        return lambda picture: print(json.encode(picture).decode(), flush=True), nothing
    terminal = sys.stdout.isatty()
    if terminal and not options.plain:
        try:
            from rfaas.admin import top_rich
        except ImportError:
            pass  # the same without colours
        else:
            return top_rich.show, top_rich.close
    return lambda picture: _print(picture, terminal and not options.once), nothing


def _print(picture: Picture, over: bool) -> None:
    columns, lines = _size()
    text = plain(picture, columns)
    if over:
        shown = [line[:columns] for line in text.splitlines()[: lines - 1]]
        text = HOME + "\n".join(shown) + "\n"
    sys.stdout.write(text)
    sys.stdout.flush()


def _size() -> tuple[int, int]:
    try:
        found = os.get_terminal_size(1)
    except OSError:  # not a terminal
        return 100, 50
    return found.columns or 80, found.lines or 24


# What is shown --------------------------------------------------------------------


def plain(picture: Picture, columns: int) -> str:
    """The picture as text."""
    name = max((len(node.node) for node in picture.nodes), default=4)
    bar = max(BAR_MIN, min(BAR_MAX, columns - name - 44))
    parts = [f"{line}\n" for line in (headline(picture), *activity_lines(picture.samples))]
    parts.append("\n")
    for node in picture.nodes:
        signs = "".join(
            SIGNS[state] * width
            for state, width in bar_of(node, picture.hot.get(node.node, 0), bar)
        )
        parts.append(f"{node.node:{name}}  [{signs}]  {words_of(node, picture.hot)}\n")
    parts.append("  ".join(f"{sign} {state}" for state, sign in SIGNS.items()) + "\n\n")
    rows = [lease_row(lease) for lease in picture.leases]
    parts.append(text_of(LEASE, rows) if rows else "no lease is live\n")
    parts.append("\n")
    parts += [f"{line}\n" for line in event_lines(picture.events)]
    return "".join(parts)


def headline(picture: Picture) -> str:
    """The cluster in a line."""
    facts = picture.status.facts
    return (
        f"rfaas on {picture.status.name}: {facts.get('nodes up', 0)} nodes up, "
        f"{facts.get('nodes lost', 0)} lost; {facts.get('cores free', 0)} of "
        f"{facts.get('cores', 0)} cores free; {facts.get('leases live', 0)} leases; "
        f"store {facts.get('store state', '')}"
    )


def activity_lines(samples: Sequence[Sample]) -> list[str]:
    """Calls and latencies, with the last minute of each."""
    if not samples:
        return ["nothing was measured yet"]
    last, minute = samples[-1], samples[-60:]
    call = format_ns(last.call_us * 1e3) if last.calls_per_s else "-"
    grant = format_ns(last.grant_p99_ms * 1e6) if last.grants else "-"
    return [
        f"calls/s {last.calls_per_s:10.0f}  {sparks(one.calls_per_s for one in minute)}",
        f"a call  {call:>10}  {sparks(one.call_us for one in minute)}",
        f"a grant {grant:>10}  {sparks(one.grant_p99_ms for one in minute)}",
    ]


def sparks(values: Iterable[float]) -> str:
    """A row of blocks, the highest value filling its own."""
    found = list(values)
    top = max(found, default=0.0)
    if top <= 0:
        return BLOCKS[0] * len(found)
    return "".join(BLOCKS[min(7, int(value / top * 7.999))] for value in found)


def states_of(node: NodeReport, hot: float) -> list[tuple[str, float]]:
    """Cores of a node by state, in the order of its bar; they add up to all of them."""
    if node.state == "lost":
        return [("lost", node.cores)]
    leased = node.cores - node.cores_free
    busy = min(float(leased), hot)
    free = "draining" if node.state == "draining" else "free"
    return [("hot", busy), ("leased", leased - busy), (free, node.cores_free)]


def bar_of(node: NodeReport, hot: float, width: int) -> list[tuple[str, int]]:
    """The same in characters, `width` together."""
    found, done, below = [], 0, 0.0
    for state, cores in states_of(node, hot):
        below += cores
        upto = round(below / node.cores * width)
        found.append((state, upto - done))
        done = upto
    return found


def words_of(node: NodeReport, hot: dict[str, float]) -> str:
    """The same in words."""
    found = states_of(node, hot.get(node.node, 0.0))
    return f"{node.cores} cores: " + ", ".join(
        f"{round(cores, 1):g} {state}" for state, cores in found if round(cores, 1)
    )


def lease_row(lease: LeaseReport) -> tuple[str, ...]:
    return (
        lease.lease[:8],
        lease.state,
        harmless(lease.client),  # as it calls itself
        lease.node,
        str(lease.cores),
        str(lease.usage.calls),
        f"{lease.remaining_s:.0f} s",
    )


def event_lines(events: Sequence[EventReport]) -> list[str]:
    """One line for each, the newest first."""
    return [harmless("  ".join(filter(None, event_row(event)))) for event in reversed(events)]
