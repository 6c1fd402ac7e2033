"""The HTTP API of a real resource manager: what it answers, to whom, and what it refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import validate
from prometheus_client.parser import text_string_to_metric_families

from rfaas.client import Lease
from rfaas.web import page
from rfaas.web.routes import ROUTES, Route
from tests.harness.processes import until
from tests.harness.site import Site
from tests.web.http import Answer, Web, read_all, serve

NODE = os.uname().nodename
UNKNOWN = "0" * 32


@pytest.fixture
def lease(shared: Web, shipped: Path) -> Iterator[Lease]:
    """A live lease that was called."""
    with shared.site.session() as session, session.lease(library=shipped) as made:
        made.call("echo", b"abc")
        yield made


@pytest.fixture(scope="module")
def document(shared: Web) -> dict[str, Any]:
    answer = shared.ask("/openapi.json", role="")
    found: dict[str, Any] = answer.json
    return found


# What it answers --------------------------------------------------------------


def test_nodes(shared: Web) -> None:
    (node,) = shared.ask("/v1/nodes").json["nodes"]
    assert (node["node"], node["state"], node["cores"]) == (NODE, "up", 2)
    assert shared.ask(f"/v1/nodes/{NODE}").json["address"] == node["address"]
    missing = shared.ask("/v1/nodes/nobody")
    assert (missing.status, missing.text) == (404, "node nobody is unknown")


def test_leases(shared: Web, lease: Lease) -> None:
    found = shared.ask("/v1/leases").json["leases"]
    (one,) = [each for each in found if each["lease"] == lease.id]
    assert (one["state"], one["node"], one["cores"]) == ("live", NODE, 1)
    assert 0 < one["remaining_s"] <= 60
    assert shared.ask(f"/v1/leases/{lease.id}").json["client"] == one["client"]
    missing = shared.ask(f"/v1/leases/{UNKNOWN}")
    assert missing.status == 404
    assert "is unknown" in missing.text


def test_revoke(shared: Web, lease: Lease) -> None:
    assert shared.ask(f"/v1/leases/{lease.id}", "DELETE", "operate").status == 200
    until(
        lambda: shared.ask(f"/v1/leases/{lease.id}").json["state"] == "revoked",
        "the end of a revoked lease",
    )
    again = shared.ask(f"/v1/leases/{lease.id}", "DELETE", "operate")
    assert (again.status, again.json["code"]) == (404, "lease-ended")


def test_events_and_their_pages(shared: Web, lease: Lease) -> None:
    found = shared.ask("/v1/events?after=0&most=1000").json
    kinds = [(one["kind"], one["node"] or one["lease"]) for one in found["events"]]
    assert ("node-joined", NODE) in kinds
    granted = [one for one in found["events"] if one["kind"] == "lease-granted"]
    assert granted[-1]["lease"] == lease.id
    numbers = [one["number"] for one in found["events"]]
    assert numbers == sorted(numbers)
    assert found["next"] == numbers[-1]
    paged, after = [], 0
    while part := shared.ask(f"/v1/events?after={after}&most=2").json["events"]:
        paged += [one["number"] for one in part]
        after = part[-1]["number"]
    assert paged[: len(numbers)] == numbers
    last = shared.ask("/v1/events?after=-1").json["events"]
    assert len(last) == 1


def test_bills_are_by_day_and_summed(shared: Web, lease: Lease) -> None:
    def mine() -> Any:
        found = shared.ask("/v1/bills?most=1000").json["bills"]
        return [one for one in found if one["lease"] == lease.id]

    (one,) = until(mine, "a bill")
    assert one["allocated_s"] > 0
    sums = shared.ask("/v1/bills?by=client").json["bills"]
    (summed,) = [each for each in sums if each["client"] == one["client"]]
    assert summed["allocated_s"] >= one["allocated_s"]
    assert shared.ask("/v1/bills?client=nobody").json == {"bills": [], "next": ""}
    assert shared.ask("/v1/bills?since=2020-01-01&until=2020-12-31").json["bills"] == []


def test_pages_follow_each_other(shared: Web, shipped: Path) -> None:
    with shared.site.session() as session:
        for _ in range(3):
            session.lease(library=shipped).close()
    whole = [one["lease"] for one in shared.ask("/v1/leases?ended=true&most=1000").json["leases"]]
    paged: list[str] = []
    after = ""
    while True:
        part = shared.ask(f"/v1/leases?ended=true&most=2&after={after}").json
        paged += [one["lease"] for one in part["leases"]]
        if not (after := part["next"]):
            break
    assert paged == whole == sorted(whole)


def test_status_and_health(shared: Web) -> None:
    assert shared.ask("/v1/status").json["role"] == "resource-manager"
    for path in ("/healthz", "/readyz"):
        assert shared.ask(path, role="").json == {"ok": True, "why": ""}


def test_head(shared: Web) -> None:
    answer = shared.ask("/healthz", "HEAD", "")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["content-length"] == "20"


def test_live_sends_pictures(shared: Web) -> None:
    with shared.socket() as sock:
        key = f"Authorization: Bearer {shared.key('read')}\r\n"
        head = f"GET /v1/live HTTP/1.1\r\nHost: x\r\n{key}\r\n"
        sock.sendall(head.encode())
        found = b""
        while found.count(b"event: picture\ndata: ") < 2:
            data = sock.recv(65536)
            assert data
            found += data
    assert b"text/event-stream" in found
    first = found.partition(b"data: ")[2].partition(b"\n\n")[0]
    picture = json.loads(first)
    assert [node["node"] for node in picture["nodes"]] == [NODE]


# Metrics ------------------------------------------------------------------------


def test_metrics_as_prometheus_reads_them(shared: Web, lease: Lease) -> None:
    def families() -> Any:
        answer = shared.ask("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        found = {one.name: one for one in text_string_to_metric_families(answer.body.decode())}
        calls = {s.labels["result"]: s.value for s in found["rfaas_calls"].samples}
        return found if calls["ok"] else None

    found = until(families, "calls in the metrics")
    assert {
        "rfaas_ready",
        "rfaas_leases",
        "rfaas_grant_seconds",
        "rfaas_calls",
        "rfaas_core_seconds",
        "rfaas_worker_crashes",
        "rfaas_nodes",
        "rfaas_node_cores",
        "rfaas_node_beat_age_seconds",
        "rfaas_http_requests",
    } <= set(found)
    states = {s.labels["state"]: s.value for s in found["rfaas_leases"].samples}
    assert states["live"] >= 1
    uses = {s.labels["use"]: s.value for s in found["rfaas_node_cores"].samples}
    assert (uses["all"], uses["free"] + uses["used"]) == (2, 2)
    grants = {(s.name, s.labels.get("le")): s.value for s in found["rfaas_grant_seconds"].samples}
    assert grants["rfaas_grant_seconds_bucket", "+Inf"] == grants["rfaas_grant_seconds_count", None]


def test_crashes_are_counted_by_cause(site: Site, hostile: Path) -> None:
    web = serve(site, "all")
    with site.session() as session, session.lease(library=hostile) as made:
        with pytest.raises(Exception, match="SIGSEGV"):
            made.call("crash_segv", b"")

        def counted() -> Any:
            text = web.ask("/metrics").body.decode()
            return 'rfaas_worker_crashes_total{cause="SIGSEGV"} 1\n' in text

        until(counted, "the crash in the metrics")


# The document -------------------------------------------------------------------


def test_the_document_is_openapi(document: dict[str, Any]) -> None:
    validate(document)


def test_every_route_is_in_the_document(document: dict[str, Any]) -> None:
    described = {
        (method.upper(), path) for path, found in document["paths"].items() for method in found
    }
    served = {(r.method, r.path.replace("<", "{").replace(">", "}")) for r in ROUTES}
    assert described == served
    assert {page_.name for page_ in Path(page.__file__).parent.iterdir()} >= {"index.html"}


@pytest.mark.parametrize("route", [r for r in ROUTES if r.method == "GET"], ids=lambda r: r.path)
def test_answers_are_as_the_document_says(
    shared: Web, document: dict[str, Any], lease: Lease, route: Route
) -> None:
    """Each answer, and what an unknown thing and a missing key are answered with."""
    if route.name == "live":
        pytest.skip("has no end; tests above")
    path = route.path.replace("<node>", NODE).replace("<lease>", lease.id)
    operation = document["paths"][route.path.replace("<", "{").replace(">", "}")]["get"]
    checked(shared.ask(path, role="read"), operation, document)
    if route.role:
        assert checked(shared.ask(path, role=""), operation, document).status == 401
    wrong = path.replace(NODE, "nobody").replace(lease.id, UNKNOWN)
    if wrong != path:
        assert checked(shared.ask(wrong), operation, document).status == 404


def test_changes_are_as_the_document_says(shared: Web, document: dict[str, Any]) -> None:
    for route in ROUTES:
        if route.method == "GET":
            continue
        operation = document["paths"][route.path.replace("<", "{").replace(">", "}")]
        found = operation[route.method.lower()]
        path = route.path.replace("<node>", "nobody").replace("<lease>", UNKNOWN)
        checked(shared.ask(path, route.method, "admin", b"{}"), found, document)
        checked(shared.ask(path, route.method, "", b"{}"), found, document)


def checked(answer: Answer, operation: dict[str, Any], document: dict[str, Any]) -> Answer:
    """The answer, once it was held against what the document says of its status."""
    assert str(answer.status) in operation["responses"], (answer.status, answer.body)
    content = operation["responses"][str(answer.status)]["content"]
    kind = answer.headers["content-type"].partition(";")[0]
    assert kind in content, (kind, content)
    if kind == "application/json":
        schema = {**content[kind]["schema"], "components": document["components"]}
        jsonschema.validate(answer.json, schema, cls=jsonschema.Draft202012Validator)
    return answer


# Who may ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "route", [r for r in ROUTES if r.role], ids=lambda r: f"{r.method} {r.path}"
)
def test_unauthenticated(shared: Web, route: Route) -> None:
    path = route.path.replace("<node>", NODE).replace("<lease>", UNKNOWN)
    answer = shared.ask(path, route.method, "", b"{}")
    assert (answer.status, answer.text) == (401, "this needs a key")
    assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("Bearer " + "x" * 43, "this key is unknown"),
        ("Bearer", "this key is unknown"),
        ("Bearer \xff\xfe", "this key is unknown"),
        ("Basic cm9vdDpyb290", "only the scheme Bearer is understood"),
    ],
)
def test_a_wrong_key(shared: Web, given: str, text: str) -> None:
    answer = shared.send("GET", "/v1/nodes", {"Authorization": given})
    assert (answer.status, answer.text) == (401, text)


@pytest.mark.parametrize("route", [r for r in ROUTES if r.role in ("operate", "admin")], ids=str)
def test_under_privileged(shared: Web, route: Route) -> None:
    role = {"operate": "read", "admin": "operate"}[route.role]
    path = route.path.replace("<node>", NODE).replace("<lease>", UNKNOWN)
    answer = shared.ask(path, route.method, role, b"{}")
    assert answer.status == 403
    assert answer.text == f"this needs the role {route.role}, this key has {role}"
    assert shared.ask(f"/v1/nodes/{NODE}").json["state"] == "up"  # and nothing was done


def test_keys_are_in_no_log(shared: Web) -> None:
    shared.ask("/v1/nodes")
    shared.send("GET", "/v1/nodes", {"Authorization": "Bearer secret-that-is-wrong"})
    log = shared.manager.stderr
    for secret in (*map(shared.key, ("read", "operate", "admin")), "secret-that-is-wrong"):
        assert secret not in log


# What it refuses ------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"node": 7}',
        b'{"node": ""}',
        b'{"nodes": "a"}',
        b'{"node": "a", "more": 1}',
        b'{"node": "' + b"a" * 256 + b'"}',
        b'{"node": "\xff"}',
        b"[" * 60000,
        b'{"node":' * 8000,
        b"9" * 60000,
        b"1e999999999",
        b'{"node": "\\ud800"}',
        bytes(range(256)) * 16,
    ],
    ids=range(16),
)
def test_hostile_json(shared: Web, body: bytes) -> None:
    answer = shared.ask("/v1/nodes", "POST", "admin", body)
    assert answer.status == 400
    assert answer.text.startswith("the body is not as it must be")
    assert len(answer.body) < 1000
    assert shared.ask("/healthz", role="").status == 200


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/v1/nope", 404, "there is no /v1/nope"),
        ("/V1/nodes", 404, "there is no /V1/nodes"),
        ("/v1/nodes/", 404, "there is no /v1/nodes/"),
        ("/../../etc/passwd", 404, "there is no /../../etc/passwd"),
        ("/v1/nodes?most=0", 400, "parameter most: Expected `int` >= 1"),
        ("/v1/nodes?most=1001", 400, "parameter most: Expected `int` <= 1000"),
        ("/v1/nodes?most=nan", 400, "parameter most: Expected `int`, got `str`"),
        ("/v1/nodes?moist=1", 400, "parameter 'moist' is unknown, only after, most allowed"),
        ("/v1/status?x=1", 400, "parameter 'x' is unknown, none is allowed"),
        ("/v1/leases/xyz", 400, "parameter lease: Expected `str` matching regex"),
        ("/v1/leases?ended=maybe", 400, "parameter ended: Expected `str` matching regex"),
        ("/v1/bills?since=tomorrow", 400, "'tomorrow' is no day"),
        ("/v1/bills?by=node", 400, "bills cannot be summed by 'node', only by lease, client, day"),
        ("/v1/nodes?after=%zz", 400, "the address is not encoded as it must be"),
        ("/v1/nodes/%ff%00", 404, "is unknown"),
    ],
)
def test_wrong_requests(shared: Web, path: str, status: int, text: str) -> None:
    answer = shared.ask(path)
    assert answer.status == status
    assert text in answer.text


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "BREW"])
def test_unknown_methods(shared: Web, method: str) -> None:
    answer = shared.ask("/v1/status", method, body=b"")
    assert answer.status == 405
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}
    assert f"/v1/status does not answer {method}" in answer.text


def test_a_body_of_a_gigabyte(shared: Web) -> None:
    head = f"POST /v1/nodes HTTP/1.1\r\nHost: x\r\nContent-Length: {1 << 30}\r\n\r\n"
    with shared.socket() as sock:
        sock.sendall(head.encode())
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"text":"a body has at most 65536 bytes, not 1073741824"' in answer


# Nodes are drained, removed and added ---------------------------------------------


def test_drain_and_undrain(site: Site, shipped: Path) -> None:
    web = serve(site, "all")
    with site.session() as session, session.lease(library=shipped) as made:
        assert web.ask(f"/v1/nodes/{NODE}/drain", "POST", "operate").status == 200
        assert web.ask(f"/v1/nodes/{NODE}").json["state"] == "draining"
        assert bytes(made.call("echo", b"on")) == b"on"
        with pytest.raises(Exception, match="cannot lease"):
            session.lease(library=shipped)
        assert web.ask(f"/v1/nodes/{NODE}/undrain", "POST", "operate").status == 200
        session.lease(library=shipped).close()
    kinds = [one["kind"] for one in web.ask("/v1/events").json["events"]]
    assert kinds.index("node-drained") < kinds.index("node-undrained")
    answer = web.ask("/v1/nodes/nobody/drain", "POST", "operate")
    assert (answer.status, answer.text) == (404, "node nobody is unknown")


def test_remove_and_add(site: Site) -> None:
    """A removed node may not come back, also to the manager's successor, until it is added."""
    web = serve(site)
    executor = site.start("executor")
    assert web.ask(f"/v1/nodes/{NODE}", "DELETE", "admin").status == 200
    assert web.ask("/v1/nodes").json["nodes"] == []

    def says(text: str, after: int = 0) -> int:
        """Where the executor's log says so."""
        return until(lambda: executor.stderr.find(text, after) + 1, f"{text!r} of the executor")

    refused = says(f"node {NODE} was removed")
    site.kill(web.manager)
    alone = says("nobody answers", refused)
    web = serve(site)
    says(f"node {NODE} was removed", alone)  # by the successor
    assert web.ask("/v1/nodes").json["nodes"] == []
    body = json.dumps({"node": NODE}).encode()
    assert web.ask("/v1/nodes", "POST", "admin", body).status == 200
    until(lambda: web.ask("/v1/nodes").json["nodes"], "the node again")
