"""The table of what the HTTP API answers: one line for each method of each path.

`api.py` dispatches by it and `openapi.py` describes it, so that neither can
know a route that the other does not.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

from msgspec import Meta

from rfaas.proto.messages import LeaseId, LeaseReport, Name, NodeReport, StatusReport
from rfaas.web import view

PAGE_MAX = 1000

Most = Annotated[int, Meta(ge=1, le=PAGE_MAX)]
Text = Annotated[str, Meta(max_length=255)]
Flag = Annotated[str, Meta(pattern=r"^(true|false)\Z")]


class Param(NamedTuple):
    """One parameter of a query; those of a path stand in it."""

    name: str
    kind: Any
    default: Any
    about: str


class Route(NamedTuple):
    """`role` is the least that a key must have, "" where nobody needs one.

    `answer` is a record for JSON, or the media type of something else.
    """

    method: str
    path: str
    name: str  # of the method in api.Api, and the document's operationId
    role: str
    about: str
    answer: Any
    query: tuple[Param, ...] = ()
    body: Any = None


AFTER = Param("after", Text, "", "what follows this one: `next` of the page before")
MOST = Param("most", Most, 100, "how many there may be on the page")

# What stands between < and > in a path.
PATH_PARAMS: dict[str, tuple[Any, str]] = {
    "node": (Name, "the node's name"),
    "lease": (LeaseId, "the lease's id, 32 hexadecimal digits"),
}

ROUTES = (
    Route("GET", "/v1/nodes", "nodes", "read", "The nodes.", view.NodePage, (AFTER, MOST)),
    Route(
        "POST",
        "/v1/nodes",
        "add",
        "admin",
        "Let a node join that was removed; its executor tries by itself.",
        view.Done,
        body=view.NewNode,
    ),
    Route("GET", "/v1/nodes/<node>", "node", "read", "One node.", NodeReport),
    Route(
        "DELETE",
        "/v1/nodes/<node>",
        "remove",
        "admin",
        "End a node's leases, forget it, and let it join no more until it is added.",
        view.Done,
    ),
    Route(
        "POST",
        "/v1/nodes/<node>/drain",
        "drain",
        "operate",
        "No new leases on a node; those that are live go on to their end.",
        view.Done,
    ),
    Route(
        "POST",
        "/v1/nodes/<node>/undrain",
        "undrain",
        "operate",
        "New leases on a node that was drained.",
        view.Done,
    ),
    Route(
        "GET",
        "/v1/leases",
        "leases",
        "read",
        "The live leases.",
        view.LeasePage,
        (Param("ended", Flag, "false", "also those that ended lately"), AFTER, MOST),
    ),
    Route("GET", "/v1/leases/<lease>", "lease", "read", "One lease, with its usage.", LeaseReport),
    Route(
        "DELETE",
        "/v1/leases/<lease>",
        "revoke",
        "operate",
        "Revoke a lease: its client gets notice, then it ends.",
        view.Done,
    ),
    Route(
        "GET",
        "/v1/bills",
        "bills",
        "read",
        "What leases used, by day, in core-seconds; not older than a second.",
        view.BillPage,
        (
            Param("client", Text, "", "of this client alone"),
            Param("since", Text, "today", 'the first day: 2026-11-23, "today", "7d"'),
            Param("until", Text, "", "the last day, in the same words"),
            Param("by", Text, "", "sum them by lease, client or day"),
            AFTER,
            MOST,
        ),
    ),
    Route(
        "GET",
        "/v1/events",
        "events",
        "read",
        "What happened to nodes and leases, the oldest first.",
        view.EventPage,
        (
            Param(
                "after",
                Annotated[int, Meta(ge=-(2**31), le=2**63 - 1)],
                -100,
                "events after this number; negative: so many of the last",
            ),
            MOST,
        ),
    ),
    Route("GET", "/v1/status", "status", "read", "The manager in a few figures.", StatusReport),
    Route(
        "GET",
        "/v1/live",
        "live",
        "read",
        "Server-sent events: a Picture by the second, as JSON.",
        "text/event-stream",
    ),
    Route("GET", "/metrics", "metrics", "read", "For Prometheus.", "text/plain"),
    Route("GET", "/healthz", "healthz", "", "Whether this process lives.", view.Health),
    Route("GET", "/readyz", "readyz", "", "Whether leases can be granted; 503: no.", view.Health),
    Route("GET", "/openapi.json", "openapi", "", "This document.", "application/json"),
    Route("GET", "/", "page", "", "The dashboard; it asks for a key.", "text/html"),
    Route("GET", "/dashboard.css", "style", "", "Its style.", "text/css"),
    Route("GET", "/dashboard.js", "script", "", "Its program.", "text/javascript"),
    Route("GET", "/plots.js", "plots", "", "Its plots.", "text/javascript"),
)
