"""What a resource manager measures of itself and its cluster, for people who look on.

A histogram of grant latencies, and one sample for each of the last seconds.
Nothing here decides anything, and nothing of it survives a restart.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterator
from typing import NamedTuple

from rfaas.core.billing import Billing
from rfaas.core.book import Totals
from rfaas.core.lease import UNUSED
from rfaas.proto.messages import Usage
from rfaas.proto.report_messages import SAMPLES_MAX, Sample

# Bounds of the grant latency's buckets in seconds; one more is for what is slower.
GRANT_BUCKETS_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
)  # fmt: skip
# Rates are those of so many samples: nodes tell their usage every 0.4 s, which makes one jump.
WINDOW = 3
LATENCIES_MAX = 4096  # of one second, for its quantiles; of more grants, the first so many


class Histogram:
    """How many values fell below each bound."""

    def __init__(self, bounds: tuple[float, ...] = GRANT_BUCKETS_S) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return sum(self.counts)


class Look(NamedTuple):
    """What had been used at a time."""

    at_s: float
    total: Usage
    nodes: dict[str, Usage]


class Meters:
    """Fed by the resource manager; read by its page, its metrics and `rfaas top`.

    Attributes:
        grants: latencies of all grants.
        samples: of the last seconds, the oldest first.
        hot: by node, how many of its cores poll or execute.
        ended: leases, by cause.
        crashes: by node, how many workers died, by cause, since their executor started.
    """

    def __init__(self) -> None:
        self.grants = Histogram()
        self.samples: deque[Sample] = deque(maxlen=SAMPLES_MAX)
        self.hot: dict[str, float] = {}
        self.ended: Counter[str] = Counter()
        self.crashes: dict[str, dict[str, int]] = {}
        self._latencies: list[float] = []
        self._granted = 0
        self._before: deque[Look] = deque(maxlen=WINDOW)

    def granted(self, latency_s: float) -> None:
        """A lease was granted so long after it was asked for."""
        self.grants.add(latency_s)
        self._granted += 1
        if len(self._latencies) < LATENCIES_MAX:
            self._latencies.append(latency_s)

    def sample(self, billing: Billing, totals: Totals, now_s: float, wall_s: float) -> None:
        """Take a sample, by the second; the first call only begins to count."""
        look = Look(now_s, billing.total, dict(billing.nodes))
        if self._before and now_s > self._before[0].at_s:
            self.samples.append(self._sample(look, self._before[0], totals, wall_s))
        self._before.append(look)
        self._latencies.clear()
        self._granted = 0

    def _sample(self, look: Look, before: Look, totals: Totals, wall_s: float) -> Sample:
        past_s = look.at_s - before.at_s
        self.hot = dict(_hot(look, before, past_s * 1e9))
        calls = look.total.calls - before.total.calls
        executing_ns = look.total.executing_ns - before.total.executing_ns
        ranked = sorted(self._latencies)
        return Sample(
            at_s=wall_s,
            calls_per_s=calls / past_s,
            failed_per_s=(look.total.failed - before.total.failed) / past_s,
            call_us=executing_ns / calls / 1e3 if calls else 0.0,
            grants=self._granted,
            grant_p50_ms=_quantile(ranked, 0.50) * 1e3,
            grant_p99_ms=_quantile(ranked, 0.99) * 1e3,
            cores=totals.cores,
            cores_leased=totals.cores - totals.cores_free,
            cores_hot=sum(self.hot.values()),
        )


def _hot(look: Look, before: Look, past_ns: float) -> Iterator[tuple[str, float]]:
    for node, usage in look.nodes.items():
        known = before.nodes.get(node, UNUSED)
        if usage is not known:
            busy = usage.polling_ns + usage.executing_ns
            found = (busy - known.polling_ns - known.executing_ns) / past_ns
            if found > 0:
                yield node, found


def _quantile(ranked: list[float], share: float) -> float:
    return ranked[min(len(ranked) - 1, int(len(ranked) * share))] if ranked else 0.0
