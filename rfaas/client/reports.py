"""What a session can ask a resource manager for people: bills, events, activity.

Apart from `session.py`, so that a program that only calls functions does not load it.
"""

from __future__ import annotations

from rfaas.client.session import Session
from rfaas.proto.report_messages import (
    Activity,
    BillReport,
    Bills,
    EventReport,
    EventsPage,
    GetActivity,
    ListBills,
    ListEvents,
)


def bills(session: Session, client: str = "", since: str = "", until: str = "") -> list[BillReport]:
    """What leases used on each day, in order of day and lease; of one client, or of all ("")."""
    found: list[BillReport] = []
    more = True
    while more:
        page = session.ask(
            ListBills(
                client=client,
                since=since,
                until=until,
                after_day=found[-1].day if found else "",
                after_lease=found[-1].lease if found else "",
            ),
            Bills,
        )
        found += page.bills
        more = page.more
    return found


def events(session: Session, after: int = -100) -> list[EventReport]:
    """The events after a number, the oldest first; negative: so many of the last."""
    found: list[EventReport] = []
    more = True
    while more:
        page = session.ask(ListEvents(after=found[-1].number if found else after), EventsPage)
        found += page.events
        more = page.more
    return found


def activity(session: Session, after_s: float = 0.0) -> Activity:
    """The samples of the last minutes that are younger than `after_s`."""
    return session.ask(GetActivity(after_s=after_s), Activity)
