"""Leases that share processors: real executors, workers that hold theirs, clients told "busy"."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rfaas.client import Lease, Session
from rfaas.client.sharing import SharedLease
from rfaas.errors import (
    BusyError,
    CapacityError,
    LeaseEndedError,
    NotDoneError,
    UsageError,
    WorkerCrashedError,
)
from tests.functions.build import build_library
from tests.harness.gate import Gate
from tests.harness.processes import until
from tests.harness.site import Site

Gates = Callable[[], Gate]


@pytest.fixture(scope="session")
def turns(libraries: Path) -> Path:
    """Functions that would keep others from their turn."""
    return build_library(libraries, "turns")


@pytest.fixture(params=["manager", "direct"])
def session(request: pytest.FixtureRequest, site: Site) -> Iterator[Session]:
    """With a node of one processor that two leases may share, managed or by itself."""
    flags = ("--set", "executor.cores=1", "--set", "executor.oversubscribe=2")
    if request.param == "manager":
        site.start("resource-manager")
        site.start("executor", *flags)
        with site.session() as made:
            yield made
    else:
        site.start("executor", "--resource-manager", "none", *flags)
        with site.session(client__executor=site.address("executor")) as made:
            yield made


@pytest.fixture
def pair(site: Site) -> Site:
    """A manager and two nodes of one processor each, which two leases may share."""
    site.start("resource-manager")
    for name in ("a", "b"):
        flags = ("executor.cores=1", "executor.oversubscribe=2", f"executor.name={name}")
        site.start("executor", *(word for flag in flags for word in ("--set", flag)))
    return site


def busy_answers(session: Session, lease: Lease) -> int:
    """How many the node has counted so far."""
    (found,) = [one.usage.busy for one in session.leases() if one.lease == lease.id]
    return found


def is_busy(lease: Lease) -> bool:
    try:
        lease.call("pid", b"", timeout=0.2)
    except BusyError:
        return True
    return False


@pytest.mark.parametrize("level", ["sandbox"])
def test_nothing_can_be_left_in_its_lock(session: Session, libraries: Path, level: str) -> None:
    """The file of it is everybody's who has that processor."""
    attacks = build_library(libraries, "attacks")
    with session.lease(cores=1, library=attacks, shared=True, isolation=level) as lease:
        text = bytes(lease.call("leave_in_files")).decode()
    *answers, files = text.splitlines()
    assert files == "files: 1"
    assert len(answers) == 3
    assert all(line.endswith(": EPERM") for line in answers)


def test_a_busy_processor_is_waited_for(session: Session, held: Path, gate: Gates) -> None:
    with (
        session.lease(cores=1, library=held, shared=True) as first,
        session.lease(cores=1, library=held, shared=True) as second,
    ):
        assert first.cpus == second.cpus
        door = gate()
        holds = first.submit("hold", door.data)
        door.begun()
        call = second.submit("copy", b"patience")
        with pytest.raises(NotDoneError):
            call.result(timeout=0.05)
        assert not call.done()
        door.release()
        assert bytes(holds.result()) == door.data
        assert bytes(call.result()) == b"patience"
        assert bytes(second.call("copy", b"again")) == b"again"


def test_busy_is_told_after_the_last_try(session: Session, held: Path, gate: Gates) -> None:
    with (
        session.lease(cores=1, library=held, shared=True) as first,
        session.lease(cores=1, library=held, shared=True) as second,
    ):
        door = gate()
        holds = first.submit("hold", door.data)
        door.begun()
        with pytest.raises(BusyError) as caught:
            second.call("copy", b"x", timeout=0.1)
        assert f"on node {second.node}" in caught.value.text
        assert "tries" in caught.value.text
        assert "timeout" in caught.value.hint
        with pytest.raises(BusyError):
            second.submit("copy", b"x", timeout=0.1).result()
        door.release()
        holds.result()
        assert bytes(second.call("copy", b"x", timeout=10)) == b"x"


def test_busy_answers_are_counted_and_are_no_calls(pair: Site, held: Path, gate: Gates) -> None:
    with pair.session(client__busy_timeout_s=0.0) as session:
        first = session.lease(cores=1, library=held, shared=True)
        second = session.lease(cores=1, library=held, shared=True)
        door = gate()
        holds = first.submit("hold", door.data)
        door.begun()
        with pytest.raises(BusyError, match="1 tries"):
            second.call("copy", b"x")
        until(lambda: busy_answers(session, second) == 1, "the manager has heard of it")
        door.release()
        holds.result()
        second.call("copy", b"x")
        first.close()
        second.close()
        until(
            lambda: (
                sorted((one.usage.calls, one.usage.busy) for one in session.leases(all=True))
                == [(1, 0), (1, 1)]
            ),
            "the last word on both",
        )


def test_a_call_goes_elsewhere(pair: Site, held: Path, gate: Gates) -> None:
    with pair.session() as session:
        first = session.lease(cores=1, library=held, shared=True)
        wide = session.lease(cores=2, library=held, shared=True, placement="spread")
        assert sorted(wide.node.split(", ")) == ["a", "b"]
        door, other = gate(), gate()
        holds = first.submit("hold", door.data)
        pid = door.begun()
        for lane in wide._lanes:  # the one on that node first
            if wide._owners[lane].node != first.node:  # type: ignore[attr-defined]
                wide._defer(lane)
        results: list[bytes] = []
        caller = threading.Thread(
            target=lambda: results.append(bytes(wide.call("hold", other.data)))
        )
        caller.start()
        assert other.begun() != pid
        other.release()
        caller.join()
        assert results == [other.data]
        part = wide._parts[[p.node for p in wide._parts].index(first.node)]  # type: ignore[attr-defined]
        until(lambda: busy_answers(session, part) >= 1, "that node turned it away")
        assert list(wide.map("copy", [b"%d" % n for n in range(50)])) == [
            b"%d" % n for n in range(50)
        ]
        door.release()
        holds.result()


def test_who_is_killed_holds_nothing(session: Session, held: Path, gate: Gates) -> None:
    with (
        session.lease(cores=1, library=held, shared=True) as first,
        session.lease(cores=1, library=held, shared=True) as second,
    ):
        door = gate()
        spins = first.submit("spin", door.data)
        pid = door.begun()
        call = second.submit("copy", b"x")
        assert not call.done()
        os.kill(pid, signal.SIGKILL)
        assert bytes(call.result()) == b"x"
        with pytest.raises(WorkerCrashedError):
            spins.result()
        assert bytes(first.call("copy", b"y")) == b"y"


def test_a_deadline_frees_the_processor(session: Session, held: Path, gate: Gates) -> None:
    with (
        session.lease(cores=1, library=held, shared=True) as first,
        session.lease(cores=1, library=held, shared=True) as second,
    ):
        door = gate()
        spins = first.submit("spin", door.data, timeout=0.2)
        door.begun()
        call = second.submit("copy", b"x")
        assert spins.exception() is not None
        assert bytes(call.result()) == b"x"


def test_callbacks_and_threads(session: Session, held: Path, gate: Gates) -> None:
    with (
        session.lease(cores=1, library=held, shared=True) as first,
        session.lease(cores=1, library=held, shared=True) as second,
    ):
        door = gate()
        holds = first.submit("hold", door.data)
        door.begun()
        calls = [second.submit("copy", b"%d" % number) for number in range(40)]
        told = threading.Event()
        heard: list[object] = []

        def hear(call: object) -> None:
            heard.append(call)
            if len(heard) == 2:
                told.set()

        for call in calls[:2]:
            call.add_done_callback(hear)
        results: list[bytes] = []
        waiters = [
            threading.Thread(target=lambda: results.append(bytes(calls[2].result())))
            for _ in range(4)
        ]
        for waiter in waiters:
            waiter.start()
        door.release()
        holds.result()
        for waiter in waiters:
            waiter.join()
        assert results == [b"2"] * 4
        assert told.wait(30)
        assert [bytes(call.result()) for call in calls] == [b"%d" % number for number in range(40)]


def test_the_end_of_a_lease_ends_its_calls(session: Session, held: Path, gate: Gates) -> None:
    with session.lease(cores=1, library=held, shared=True) as first:
        second = session.lease(cores=1, library=held, shared=True)
        door = gate()
        holds = first.submit("hold", door.data)
        door.begun()
        call = second.submit("copy", b"x")
        assert not call.done()
        second.close()
        with pytest.raises((LeaseEndedError, UsageError)):
            call.result()
        door.release()
        holds.result()


def test_a_third_lease_and_an_owner_are_refused(session: Session, held: Path) -> None:
    first = session.lease(cores=1, library=held, shared=True)
    second = session.lease(cores=1, library=held, shared=True)
    for shared in (True, False):
        with pytest.raises(CapacityError):
            session.lease(cores=1, library=held, shared=shared)
    first.close()
    second.close()
    with session.lease(cores=1, library=held) as owner:
        assert not isinstance(owner, SharedLease)
        with pytest.raises(CapacityError):
            session.lease(cores=1, library=held, shared=True)


def test_a_factor_of_one_refuses(site: Site, held: Path, gate: Gates) -> None:
    site.start("all", "--set", "executor.cores=1")
    with site.session() as session, session.lease(cores=1, library=held, shared=True) as lease:
        assert bytes(lease.call("copy", b"x")) == b"x"
        with pytest.raises(CapacityError, match="0 of 1 core"):
            session.lease(cores=1, library=held, shared=True)


def test_what_never_spins_has_no_hot_timeout(session: Session, held: Path) -> None:
    with pytest.raises(UsageError, match="its lanes never spin"):
        session.lease(cores=1, library=held, shared=True, hot_timeout_ms=5)


@pytest.mark.parametrize("isolation", ["process", "sandbox"])
def test_a_stranger_can_hold_his_processor_as_long_as_his_lease(
    session: Session, turns: Path, isolation: str
) -> None:
    hog = session.lease(cores=1, library=turns, shared=True, isolation=isolation)
    with session.lease(cores=1, library=turns, shared=True, isolation=isolation) as lease:
        assert int.from_bytes(lease.call("unlock", b""), "little") > 0  # his own
        lease.call("pid", b"")
        hog.call("hog", b"")
        until(lambda: is_busy(lease), "he holds it")
        hog.close()
        lease.call("pid", b"")


def test_input_in_a_buffer_is_asked_for_again(session: Session, held: Path, gate: Gates) -> None:
    with (
        session.lease(cores=1, library=held, shared=True) as first,
        session.lease(cores=2 - 1, library=held, shared=True) as second,
    ):
        door = gate()
        holds = first.submit("hold", door.data)
        door.begun()
        buffer = second.buffer(50_000)
        buffer[:] = bytes(range(250)) * 200
        call = second.submit("copy", buffer)
        assert not call.done()
        door.release()
        holds.result()
        assert bytes(call.result()) == bytes(buffer)
        assert bytes(second.call("copy", buffer)) == bytes(buffer)
