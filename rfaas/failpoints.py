"""Places at which a test has this process die, as if the power had gone.

    RFAAS_FAILPOINTS="store.written=3"     SIGKILL at the third time that it gets there

Levers on the real path, so that what survives is what would survive: no handler runs, nothing
is flushed.  Unset, which it always is but in tests, a place costs one look at an empty table.
"""

from __future__ import annotations

import os

VARIABLE = "RFAAS_FAILPOINTS"

# Every place there is; tests go through all of them.
PLACES = (
    "manager.decided",  # granted in memory, kept nowhere
    "manager.saved",  # kept, and nobody told
    "manager.answered",  # the answer is in the socket
    "manager.ended",  # ended in memory
    "store.begun",  # inside the transaction, nothing written
    "store.written",  # all written, not committed
    "store.committed",  # committed, and the manager does not know it yet
)

_left: dict[str, int] = {}


def arm(text: str) -> None:
    """Set what the variable says: PLACE=COUNT, several with commas."""
    for pair in filter(None, text.split(",")):
        place, _, count = pair.partition("=")
        if place in PLACES and count.isdecimal():
            _left[place] = int(count)


def reach(place: str) -> None:
    """Die here, if that is armed and its turn."""
    if not _left or place not in _left:
        return
    _left[place] -= 1
    if _left[place] <= 0:
        import signal

        os.kill(os.getpid(), signal.SIGKILL)
