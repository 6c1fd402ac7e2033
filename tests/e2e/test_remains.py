"""Memory between leases: what one has left anywhere, the next does not find.

The first fills its slots, heap, data and stack with a pattern, and finds it there: so the
search is known to see.  The second searches all that it can read.
"""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import NamedTuple

import pytest

from rfaas.client import Lease, Session
from tests.e2e.test_keep_warm import over_shm
from tests.functions.build import build_library
from tests.harness.processes import until, workers_of
from tests.harness.site import Site

INPUT_BYTES, PATTERN_BYTES = 4096, 32  # remains.c
SLOTS = 2
LEVELS = ("none", "process", "sandbox")


class Found(NamedTuple):
    """In how many pages."""

    slots: int
    heap: int
    mapped: int
    stack: int


@pytest.fixture(scope="session")
def remains(libraries: Path) -> Path:
    return build_library(libraries, "remains")


@pytest.fixture
def shifted(seed: int) -> bytes:
    """The pattern, each byte plus one, as it is asked for."""
    pattern = random.Random(seed).randbytes(PATTERN_BYTES)
    return bytes((byte + 1) % 256 for byte in pattern).ljust(INPUT_BYTES, b"\0")


def in_all_slots(lease: Lease, function: str, data: bytes) -> list[bytes]:
    calls = [lease.submit(function, data) for _ in range(SLOTS)]
    return [bytes(call.result()) for call in calls]


def look(lease: Lease, shifted: bytes) -> Found:
    """What is found, in its slots together and elsewhere."""
    found = [struct.unpack("<4q", one) for one in in_all_slots(lease, "look", shifted)]
    return Found(sum(one[0] for one in found), *found[0][1:])


def leave(session: Session, remains: Path, shifted: bytes, **settings: str) -> None:
    """A lease that leaves its pattern everywhere, and sees it."""
    with session.lease(1, remains, slots=SLOTS, **settings) as lease:  # type: ignore[arg-type]
        in_all_slots(lease, "leave", shifted)
        found = look(lease, shifted)
        assert found.slots >= 16
        assert found.heap + found.mapped >= 32 * 16  # at least its half of the blocks
        assert found.mapped >= 16


@pytest.mark.parametrize("pool", [0, 1])
@pytest.mark.parametrize("level", LEVELS)
def test_nothing_of_one_lease_is_found_by_the_next(
    site: Site, remains: Path, shifted: bytes, level: str, pool: int
) -> None:
    site.set(sandbox__pool=pool, executor__cores=1, lease__isolation=level)
    executor = site.start("executor", "--resource-manager", "none")
    with site.session(client__executor=site.address("executor")) as session:
        with session.lease(library=remains):  # brings the library, and has a worker wait
            pass
        for _ in range(2):
            if pool:
                until(lambda: workers_of(executor.pid), "a worker that waits")
            leave(session, remains, shifted)
            with session.lease(1, remains, slots=SLOTS) as lease:
                assert look(lease, shifted) == Found(0, 0, 0, 0)


@over_shm
@pytest.mark.parametrize("level", LEVELS)
def test_a_kept_worker_has_its_librarys_state_and_new_slots(
    site: Site, remains: Path, shifted: bytes, level: str
) -> None:
    """The same client's: what its functions have allocated is theirs still.  A client who does
    not prove to be the same gets another worker: test_keep_warm_clients.py."""
    site.set(executor__keep_warm_s=600.0, executor__cores=1, lease__isolation=level)
    site.start("executor", "--resource-manager", "none")
    with site.session(client__executor=site.address("executor")) as session:
        leave(session, remains, shifted)
        with session.lease(1, remains, slots=SLOTS) as lease:
            assert lease.was_kept
            found = look(lease, shifted)
            assert found.slots == 0
            assert found.heap + found.mapped >= 32 * 16
        with session.lease(1, remains, slots=SLOTS, keep_warm=False) as lease:
            assert not lease.was_kept
            assert look(lease, shifted) == Found(0, 0, 0, 0)
