"""`rfaas top` in colour, by rich; imported where rich is installed."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rfaas.admin import top

STYLES = {
    "hot": "bold blue",
    "leased": "cyan",
    "free": "dim",
    "draining": "yellow",
    "lost": "red",
}

_live: list[Live] = []  # the one that draws, once it was begun


def show(picture: top.Picture) -> None:
    """Draw it over the picture before."""
    if not _live:
        _live.append(Live(console=Console(), auto_refresh=False, vertical_overflow="crop"))
        _live[0].start()
    _live[0].update(draw(picture, _live[0].console.width), refresh=True)


def close() -> None:
    """Give the terminal back, its cursor shown.  Can be called twice."""
    if _live:
        _live.pop().stop()


def draw(picture: top.Picture, columns: int) -> RenderableType:
    """The picture as rich has it."""
    nodes = Table.grid(padding=(0, 2))
    width = max(top.BAR_MIN, min(top.BAR_MAX, columns - 60))
    for node in picture.nodes:
        bar = Text("[")
        for state, part in top.bar_of(node, picture.hot.get(node.node, 0.0), width):
            bar.append(top.SIGNS[state] * part, STYLES[state])
        bar.append("]")
        nodes.add_row(Text(node.node, "bold"), bar, Text(top.words_of(node, picture.hot)))
    legend = Text()
    for state, sign in top.SIGNS.items():
        legend.append(f"{sign} ", STYLES[state]).append(f"{state}  ", "dim")
    leases = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for head in top.LEASE:
        leases.add_column(head, justify="right" if head in ("CORES", "CALLS", "LEFT") else "left")
    for lease in picture.leases:
        leases.add_row(*map(Text, top.lease_row(lease)))
    if not picture.leases:
        leases = Table.grid()
        leases.add_row(Text("no lease is live", "dim"))
    return Group(
        Text(top.headline(picture), "bold"),
        *(Text(line) for line in top.activity_lines(picture.samples)),
        Text(),
        nodes,
        legend,
        Text(),
        leases,
        Text(),
        *(Text(line, "dim") for line in top.event_lines(picture.events)),
    )
