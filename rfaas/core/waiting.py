"""The queue of requests that wait for cores, and whose turn it is.

Fair between accounts: whoever holds the fewest cores is first, and within an account who
asked first.  A request that does not fit yet lets others pass, but only PASSED_MAX times;
then the cores that become free are kept for it, so that a large one is not starved by a
stream of small ones.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rfaas.core.lease import Ask
from rfaas.errors import CapacityError

QUEUE_MAX = 4096  # requests; what comes past it is refused
PASSED_MAX = 64


@dataclass(slots=True, eq=False)
class Waiting:
    """A request in the queue."""

    ask: Ask
    number: int  # of its arrival
    until_s: float
    passed: int = 0  # how often another was granted before it


class Queue:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._by_account: dict[str, deque[Waiting]] = {}
        self._all: dict[str, Waiting] = {}  # by lease
        self._number = 0
        self._due_s = math.inf  # no later than the first deadline

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, lease: object) -> bool:
        return lease in self._all

    def add(self, ask: Ask, now_s: float) -> Waiting:
        """Put a request at the end of its account's line.

        Raises:
            CapacityError: the queue is full.
        """
        if len(self._all) >= QUEUE_MAX:
            raise CapacityError(
                f"cannot wait for {ask.cores} cores: {QUEUE_MAX} requests wait already",
                hint="ask again later",
            )
        self._number += 1
        waiting = Waiting(ask, self._number, now_s + ask.wait_s)
        self._all[ask.lease] = waiting
        self._by_account.setdefault(ask.account, deque()).append(waiting)
        self._due_s = min(self._due_s, waiting.until_s)
        return waiting

    def remove(self, lease: str) -> Ask | None:
        waiting = self._all.pop(lease, None)
        if waiting is None:
            return None
        line = self._by_account[waiting.ask.account]
        line.remove(waiting)
        if not line:
            del self._by_account[waiting.ask.account]
        return waiting.ask

    def overdue(self, now_s: float) -> list[Ask]:
        """Take out those whose time is up, in order of arrival."""
        if now_s < self._due_s:
            return []
        late = [one for one in self._all.values() if one.until_s <= now_s]
        for waiting in late:
            self.remove(waiting.ask.lease)
        self._due_s = min((one.until_s for one in self._all.values()), default=math.inf)
        return [waiting.ask for waiting in late]

    def turns(self, held: Callable[[str], int]) -> list[Waiting]:
        """The first of each account's line, who holds least first."""
        firsts: Iterable[Waiting] = (line[0] for line in self._by_account.values())
        return sorted(firsts, key=lambda first: (held(first.ask.account), first.number))
