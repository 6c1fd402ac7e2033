"""The figures as Prometheus reads them: text, format 0.0.4.

Written by hand: what there is to say is two dozen lines, and the tests read them
with Prometheus' own parser.  Counters start at 0 with this process, as Prometheus
expects of a restart.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from rfaas.proto.messages import NodeReport
from rfaas.web.server import Traffic
from rfaas.web.view import View

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
KEPT_S = 0.5  # whoever asks again sooner gets the same text
SLICE = 256  # nodes that are written before others have their turn

Labels = Mapping[str, str]
Sample = tuple[str, Labels, float]  # suffix of the name, labels, value


class Metrics:
    """The text, made when it is asked for."""

    def __init__(self, view: View, traffic: Traffic) -> None:
        self._view = view
        self._traffic = traffic
        self._text = ""
        self._until_s = -math.inf

    async def text(self) -> str:
        """The text, at most KEPT_S old."""
        if time.monotonic() >= self._until_s:
            parts = list(self._cluster())
            parts += await self._nodes()
            self._text = "".join(parts)
            self._until_s = time.monotonic() + KEPT_S
        return self._text

    def _cluster(self) -> Iterator[str]:
        view, meters = self._view, self._view.meters
        yield _family(
            "rfaas_ready", "gauge", "Whether leases can be granted.", [("", {}, not view.unready())]
        )
        states = view.lease_states()
        yield _family(
            "rfaas_leases",
            "gauge",
            "Leases that are live or wait, by state.",
            [("", {"state": state}, count) for state, count in states.items()],
        )
        ended = meters.ended
        yield _family(
            "rfaas_leases_ended_total",
            "counter",
            "Leases that ended, by cause.",
            [("", {"cause": cause}, count) for cause, count in sorted(ended.items())],
        )
        yield _family(
            "rfaas_grant_seconds",
            "histogram",
            "From a client's request to its lease, saved and signed.",
            _buckets(meters.grants.bounds, meters.grants.counts, meters.grants.sum),
        )
        used = view.used()
        yield _family(
            "rfaas_calls_total",
            "counter",
            "Calls, by how they ended.",
            [
                ("", {"result": "ok"}, used.calls - used.failed),
                ("", {"result": "failed"}, used.failed),
            ],
        )
        yield _family(
            "rfaas_busy_answers_total",
            "counter",
            "Requests that were turned away: another lease had the shared core.",
            [("", {}, used.busy)],
        )
        slept_ns = used.allocated_ns - used.polling_ns - used.executing_ns
        yield _family(
            "rfaas_core_seconds_total",
            "counter",
            "Core-seconds of leases: executing and polling are hot, sleeping is warm.",
            [
                ("", {"state": "executing"}, used.executing_ns / 1e9),
                ("", {"state": "polling"}, used.polling_ns / 1e9),
                ("", {"state": "sleeping"}, max(0, slept_ns) / 1e9),
            ],
        )
        crashes: Counter[str] = Counter()
        for causes in meters.crashes.values():
            crashes.update(causes)
        yield _family(
            "rfaas_worker_crashes_total",
            "counter",
            "Workers that died of themselves, by cause.",
            [("", {"cause": cause}, count) for cause, count in sorted(crashes.items())],
        )
        web = self._traffic
        yield _family(
            "rfaas_http_requests_total",
            "counter",
            "Answers over HTTP, by status.",
            [("", {"status": str(s)}, count) for s, count in sorted(web.requests.items())],
        )
        yield _family(
            "rfaas_http_connections", "gauge", "Connections that are open.", [("", {}, web.open)]
        )
        yield _family(
            "rfaas_http_denied_total",
            "counter",
            "Requests that their key did not allow, by why.",
            [("", {"why": why}, count) for why, count in sorted(web.denied.items())],
        )
        yield _family(
            "rfaas_http_dropped_total",
            "counter",
            "Connections that were closed unread: too many, or no TLS.",
            [("", {}, web.dropped)],
        )

    async def _nodes(self) -> list[str]:
        cores: list[Sample] = []
        gpus: list[Sample] = []
        beats: list[Sample] = []
        up: Counter[str] = Counter({"up": 0, "lost": 0})
        after = ""
        while page := self._view.nodes(after, SLICE):
            for node in page:
                up[node.state] += 1
                cores += _cores(node, self._view.meters.hot.get(node.node, 0.0))
                if node.gpus:
                    gpus += _gpus(node)
                beats.append(("", {"node": node.node}, node.beat_age_s))
            after = page[-1].node
            await asyncio.sleep(0)
        return [
            _family(
                "rfaas_nodes",
                "gauge",
                "Nodes, by state.",
                [("", {"state": state}, count) for state, count in sorted(up.items())],
            ),
            _family("rfaas_node_cores", "gauge", "Cores of a node, by use.", cores),
            _family("rfaas_node_gpus", "gauge", "GPUs of a node: all, free, used.", gpus),
            _family("rfaas_node_beat_age_seconds", "gauge", "Since a node's last beat.", beats),
        ]


def _cores(node: NodeReport, hot: float) -> Iterator[Sample]:
    for use, value in (
        ("all", node.cores),
        ("free", node.cores_free),
        ("used", node.cores - node.cores_free),
        ("hot", hot),
        ("shared", node.shared),
    ):
        yield "", {"node": node.node, "use": use}, value


def _gpus(node: NodeReport) -> Iterator[Sample]:
    used = node.gpus - node.gpus_free
    for use, value in (("all", node.gpus), ("free", node.gpus_free), ("used", used)):
        yield "", {"node": node.node, "use": use}, value


def _buckets(bounds: Iterable[float], counts: list[int], total: float) -> Iterator[Sample]:
    below = 0
    for bound, count in zip((*bounds, math.inf), counts, strict=True):
        below += count
        yield "_bucket", {"le": "+Inf" if math.isinf(bound) else repr(bound)}, below
    yield "_sum", {}, total
    yield "_count", {}, below


def _family(name: str, kind: str, about: str, samples: Iterable[Sample]) -> str:
    lines = [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
    for suffix, labels, value in samples:
        inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        labelled = f"{{{inside}}}" if inside else ""
        lines.append(f"{name}{suffix}{labelled} {value:.10g}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
