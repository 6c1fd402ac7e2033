"""Who answers which route: from a request's bytes to the view and back.

Microdot finds the route; each handler is a method of `Api` that takes checked
arguments and returns a record.  Here are also the order of checks (key, role,
arguments, body) and how an error becomes a status.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

import microdot
import msgspec

from rfaas.core.billing import GROUPS, Bill, parse_day, report, summed
from rfaas.errors import RfaasError, UsageError
from rfaas.proto.messages import LeaseReport, NodeReport, StatusReport
from rfaas.proto.report_messages import BillReport
from rfaas.web import live, metrics, openapi, page
from rfaas.web.access import Keys
from rfaas.web.routes import PATH_PARAMS, ROUTES, Route
from rfaas.web.server import BODY_BYTES_MAX, Request, Response, Traffic
from rfaas.web.view import (
    BillPage,
    Done,
    EventPage,
    Fault,
    Health,
    LeasePage,
    NewNode,
    NodePage,
    View,
)

BILLS_MAX = 100_000  # that one answer sums; it says so where there are more
SLICE = 256  # bills that are read before others have their turn
STATUSES = {  # by the error's code; what is missing is 500
    "usage": 400,
    "config": 400,
    "unavailable": 404,
    "lease-ended": 404,
    "capacity": 409,
    "system-call": 503,
    "peer-lost": 503,
    "protocol": 400,
}
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

log = logging.getLogger("rfaas.http")


class DeniedError(Exception):
    """A request that its key does not allow."""

    def __init__(self, status: int, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.fault = Fault("not-permitted", text, hint)


class Api:
    """See the module's docstring."""

    def __init__(self, view: View, keys: Keys, stream: live.Live, traffic: Traffic) -> None:
        self._view = view
        self._keys = keys
        self._live = stream
        self._metrics = metrics.Metrics(view, traffic)
        self._traffic = traffic
        self._app: Any = microdot.Microdot()
        for route in ROUTES:
            handler = self._handler(route, getattr(self, route.name))
            self._app.route(route.path, methods=[route.method])(handler)
        self._app.errorhandler(404)(self._not_found)
        self._app.errorhandler(405)(self._not_allowed)
        microdot.Request.max_content_length = BODY_BYTES_MAX  # what the server lets through
        self._document = msgspec.json.encode(openapi.document())

    async def handle(self, request: Request) -> Response:
        """Answer any request; never fails."""
        try:
            asked = microdot.Request(
                self._app,
                (request.peer, 0),
                request.method,
                request.target,
                "1.1",
                microdot.microdot.NoCaseDict(request.headers),
                body=request.body,
            )
        except ValueError:  # its own reading of %zz
            return faulty(400, Fault("usage", "the address is not encoded as it must be"))
        answer = await self._app.dispatch_request(asked)
        headers = {name: str(value) for name, value in answer.headers.items()}
        return Response(answer.status_code, HEADERS | headers, answer.body)

    # Nodes

    def nodes(self, after: str, most: int) -> NodePage:
        found = self._view.nodes(after, most + 1)
        return NodePage(found[:most], found[most - 1].node if len(found) > most else "")

    def node(self, node: str) -> NodeReport:
        return self._view.node(node)

    async def add(self, body: NewNode) -> Done:
        await self._view.add(body.node)
        return Done(f"node {body.node} may join")

    async def remove(self, node: str) -> Done:
        await self._view.remove(node)
        return Done(f"node {node} is removed")

    async def drain(self, node: str) -> Done:
        await self._view.drain(node)
        return Done(f"node {node} takes no new leases")

    async def undrain(self, node: str) -> Done:
        await self._view.undrain(node)
        return Done(f"node {node} takes leases")

    # Leases

    def leases(self, ended: str, after: str, most: int) -> LeasePage:
        found = self._view.leases(ended == "true", after, most + 1)
        return LeasePage(found[:most], found[most - 1].lease if len(found) > most else "")

    def lease(self, lease: str) -> LeaseReport:
        return self._view.lease(lease)

    async def revoke(self, lease: str) -> Done:
        await self._view.revoke(lease)
        return Done(f"lease {lease} is revoked")

    # Bills and events

    async def bills(
        self, client: str, since: str, until: str, by: str, after: str, most: int
    ) -> BillPage:
        now_s = self._view.wall_s()
        first = parse_day(since, now_s) if since else ""
        last = parse_day(until, now_s) if until else ""
        if not by:
            day, _, lease = after.partition(" ")
            found = await self._view.bills(first, last, client, (day, lease), most + 1)
            rest = f"{found[most - 1].day} {found[most - 1].lease}" if len(found) > most else ""
            return BillPage([self._bill(one) for one in found[:most]], rest)
        if by not in GROUPS:
            raise UsageError(f"bills cannot be summed by {by!r}, only by {', '.join(GROUPS)}")
        read: list[Bill] = []
        at = ("", "")
        while page_ := await self._view.bills(first, last, client, at, SLICE):
            read += page_
            at = (page_[-1].day, page_[-1].lease)
            if len(read) > BILLS_MAX:
                raise UsageError(
                    f"more than {BILLS_MAX} bills cannot be summed at once",
                    hint="ask for fewer days, or for one client",
                )
            await asyncio.sleep(0)
        return BillPage([self._bill(one) for one in summed(read, by)])

    def _bill(self, bill: Bill) -> BillReport:
        return report(bill, self._view.prices)

    def events(self, after: int, most: int) -> EventPage:
        found = self._view.events_after(after)[:most]
        return EventPage(found, found[-1].number if found else max(after, 0))

    # About itself

    def status(self) -> StatusReport:
        return self._view.status()

    def healthz(self) -> Health:
        return Health(True)

    def readyz(self) -> microdot.Response:
        why = self._view.unready()
        return _json(Health(not why, why), 503 if why else 200)

    async def metrics(self) -> microdot.Response:
        text = await self._metrics.text()
        return microdot.Response(text, headers={"Content-Type": metrics.CONTENT_TYPE})

    def live(self) -> microdot.Response:
        pieces: Any = self._live.stream()  # its types know only bytes
        return microdot.Response(
            pieces, headers={"Content-Type": "text/event-stream; charset=utf-8"}
        )

    def openapi(self) -> microdot.Response:
        return microdot.Response(self._document, headers={"Content-Type": "application/json"})

    # The dashboard

    def page(self) -> microdot.Response:
        return _file("index.html")

    def style(self) -> microdot.Response:
        return _file("dashboard.css")

    def script(self) -> microdot.Response:
        return _file("dashboard.js")

    def plots(self) -> microdot.Response:
        return _file("plots.js")

    # How all of them are called

    def _handler(self, route: Route, answer: Callable[..., Any]) -> Callable[..., Any]:
        async def handler(request: Any, **path: str) -> microdot.Response:
            try:
                if route.role:
                    self._check(route.role, request.headers.get("authorization", ""))
                found = answer(**_arguments(route, path, request.args, request.body))
                if asyncio.iscoroutine(found):
                    found = await found
            except DeniedError as denied:
                headers = {"WWW-Authenticate": 'Bearer realm="rfaas"'}
                return _json(denied.fault, denied.status, headers if denied.status == 401 else {})
            except RfaasError as error:
                fault = Fault(error.code, error.text, error.hint)
                return _json(fault, STATUSES.get(error.code, 500))
            except Exception:
                log.exception("cannot answer %s %s", route.method, route.path)
                return _json(Fault("internal", "this failed here; the log says more"), 500)
            return found if isinstance(found, microdot.Response) else _json(found)

        return handler

    def _check(self, role: str, given: str) -> None:
        scheme, _, key = given.partition(" ")
        if not given:
            raise self._denied("none", 401, "this needs a key", "Authorization: Bearer KEY")
        if scheme.lower() != "bearer":
            raise self._denied("scheme", 401, "only the scheme Bearer is understood")
        holder = self._keys.holder(key.strip())
        if holder is None:
            raise self._denied("unknown", 401, "this key is unknown", f"see {self._keys.path}")
        if not holder.may(role):
            text = f"this needs the role {role}, this key has {holder.role}"
            raise self._denied("role", 403, text)

    def _denied(self, why: str, status: int, text: str, hint: str = "") -> DeniedError:
        self._traffic.denied[why] += 1
        return DeniedError(status, text, hint)

    async def _not_found(self, request: Any) -> microdot.Response:
        hint = "GET /openapi.json lists what there is"
        return _json(Fault("unavailable", f"there is no {request.path[:200]}", hint), 404)

    async def _not_allowed(self, request: Any) -> microdot.Response:
        allowed = self._app.default_options_handler(request)["Allow"]
        text = f"{request.path[:200]} does not answer {request.method[:20]}, only {allowed}"
        return _json(Fault("usage", text), 405, {"Allow": allowed})


def faulty(status: int, fault: Fault) -> Response:
    """The answer to what never came as far as a route."""
    headers = HEADERS | {"Content-Type": "application/json"}
    return Response(status, headers, msgspec.json.encode(fault))


def _arguments(
    route: Route, path: Mapping[str, str], query: Mapping[str, str], body: bytes
) -> dict[str, Any]:
    """All that the route takes, checked.

    Raises:
        UsageError: a parameter or the body is not as the document says.
    """
    found: dict[str, Any] = {}
    for name, text in path.items():
        found[name] = _converted(unquote(text), PATH_PARAMS[name][0], name)
    known = {param.name for param in route.query}
    for name in query:
        if name not in known:
            allowed = f"only {', '.join(sorted(known))}" if known else "none is"
            raise UsageError(f"parameter {name[:40]!r} is unknown, {allowed} allowed")
    for param in route.query:
        value: Any = query.get(param.name)
        found[param.name] = (
            param.default if value is None else _converted(value, param.kind, param.name)
        )
    if route.body is not None:
        try:
            found["body"] = msgspec.json.decode(body, type=route.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UsageError(f"the body is not as it must be: {error}"[:500]) from None
    return found


def _converted(text: str, kind: Any, name: str) -> Any:
    try:
        return msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"parameter {name}: {error}"[:300]) from None


def _json(
    record: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> microdot.Response:
    data = msgspec.json.encode(record)
    found = {"Content-Type": "application/json", **(headers or {})}
    return microdot.Response(data, status, found)


def _file(name: str) -> microdot.Response:
    kind, data = page.read(name)
    return microdot.Response(data, headers={"Content-Type": kind, **PAGE_HEADERS})
