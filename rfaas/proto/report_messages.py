"""The messages by which people look on: bills, events, the last minutes in figures, output.

    asks                    message           answered by
    client -> manager       ListBills         Bills
                            ListEvents        EventsPage
                            GetActivity       Activity
    client -> executor      GetOutput         WorkerOutput

Apart from `messages.py`, so that `rfaas call` does not load them.  Times are
wall seconds since 1970, days are UTC.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct, field

from rfaas.proto.messages import OUTPUT_BYTES_MAX, Count, LeaseId, Message, Name

SAMPLES_MAX = 120  # seconds that are remembered

Day = Annotated[str, Meta(pattern=r"^(\d{4}-\d{2}-\d{2})?\Z")]
Amount = Annotated[float, Meta(ge=0)]


class BillReport(Struct, frozen=True, kw_only=True):
    """What a lease used on a day, in core-seconds; where bills are summed, what differs is "".

    `gpu_s` is how long it held GPUs.
    """

    day: Day
    client: Annotated[str, Meta(max_length=255)]
    lease: Annotated[str, Meta(max_length=32)]
    node: Annotated[str, Meta(max_length=255)]
    allocated_s: Amount
    polling_s: Amount
    executing_s: Amount
    calls: Count
    failed: Count
    cost: Amount
    currency: Annotated[str, Meta(max_length=128)] = ""
    gpu_s: Amount = 0.0


class ListBills(Message, frozen=True):
    """Bills of a client or of all (""), from day `since` to day `until`; after that day's lease."""

    client: Annotated[str, Meta(max_length=255)] = ""
    since: Day = ""
    until: Day = ""
    after_day: Day = ""
    after_lease: Annotated[str, Meta(max_length=32)] = ""


class Bills(Message, frozen=True):
    """A page of bills in order of day and lease; `more` when another page follows."""

    bills: tuple[BillReport, ...]
    more: bool = False


class EventReport(Struct, frozen=True, kw_only=True):
    """One thing that happened, as `core.events.Event`; what does not apply is "" or 0."""

    number: Count
    at_s: float
    kind: Name
    node: Annotated[str, Meta(max_length=255)] = ""
    lease: Annotated[str, Meta(max_length=32)] = ""
    client: Annotated[str, Meta(max_length=255)] = ""
    cores: Annotated[int, Meta(ge=0)] = 0
    cause: Annotated[str, Meta(max_length=255)] = ""


class ListEvents(Message, frozen=True):
    """The events after number `after`, the oldest first; -N: the last N."""

    after: int = 0


class EventsPage(Message, frozen=True):
    """A page of events; `more` when another page follows."""

    events: tuple[EventReport, ...]
    more: bool = False


class Sample(Struct, frozen=True, kw_only=True):
    """The whole cluster, by the second; rates are means of three.

    `call_us` is the mean time that a call executed; the grant's are of the grants of that
    second, and 0 where there was none.
    """

    at_s: float
    calls_per_s: Amount
    failed_per_s: Amount
    call_us: Amount
    grants: Count
    grant_p50_ms: Amount
    grant_p99_ms: Amount
    cores: Count
    cores_leased: Count
    cores_hot: Amount


class GetActivity(Message, frozen=True):
    """Ask for the samples after that time, the oldest first; 0: all there are."""

    after_s: float = 0.0


class Activity(Message, frozen=True):
    """At most SAMPLES_MAX samples, and how many cores of each node are hot, where any is."""

    samples: Annotated[tuple[Sample, ...], Meta(max_length=SAMPLES_MAX)]
    hot: dict[Name, Amount] = field(default_factory=dict)


class GetOutput(Message, frozen=True):
    """Ask for the end of what a worker of a lease wrote, from byte `start` of all that it did on.

    It is the oldest one of which something is kept, from number `worker` on.
    """

    lease: LeaseId
    worker: Count = 0
    start: Count = 0


class WorkerOutput(Message, frozen=True):
    """A part of what `worker` wrote: from byte `start` on, which is the first that is kept where
    an earlier one was asked for, of the `end` that there are so far; `later` is the lease's next
    worker of which something is kept, 0 for none."""

    worker: Count
    data: Annotated[bytes, Meta(max_length=OUTPUT_BYTES_MAX)]
    start: Count
    end: Count
    later: Count = 0
