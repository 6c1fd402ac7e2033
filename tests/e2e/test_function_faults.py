"""Functions that misbehave: their own call fails and says why, and the lease lives on."""

from __future__ import annotations

import os
import re
import signal
import struct
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from rfaas.client import Lease, Session
from rfaas.errors import (
    CapacityError,
    DeadlineExceededError,
    FunctionFailedError,
    OutputTooLargeError,
    PayloadTooLargeError,
    ProtocolError,
    WorkerCrashedError,
)
from rfaas.proto import wire
from rfaas.proto.messages import Message, WorkerExited
from tests.harness.gate import Gate
from tests.harness.processes import is_alive, wait_for_end, workers_of
from tests.harness.site import Site

SLOT = 65536


@pytest.fixture
def session(site: Site) -> Iterator[Session]:
    """With a private executor."""
    with site.private_session() as session:
        yield session


def number(value: int) -> bytes:
    """As the functions of hostile.c take one."""
    return struct.pack("<I", value)


def lives(lease: Lease) -> bool:
    """Whether the next call is served, and by one worker."""
    return lease.call("empty_output") == b"" and len(workers_of(os.getpid())) == 1


CRASHES = [
    ("crash_segv", "the worker died: killed by SIGSEGV (Segmentation fault) at address 0x8"),
    ("crash_abort", "the worker died: killed by SIGABRT (Aborted)"),
    ("call_exit", "the worker died: it ended by itself with exit status 3"),
    ("call_pthread_exit", "the worker died: a function called pthread_exit()"),
]


@pytest.mark.parametrize(("function", "words"), CRASHES)
def test_crash(session: Session, hostile: Path, function: str, words: str) -> None:
    with session.lease(library=hostile) as lease:
        with pytest.raises(WorkerCrashedError, match=re.escape(words)):
            lease.call(function)
        assert lives(lease)
        future = lease.submit(function)
        assert isinstance(future.exception(), WorkerCrashedError)
        with pytest.raises(WorkerCrashedError, match=re.escape(words)):
            future.result()
        assert lives(lease)
        with pytest.raises(WorkerCrashedError, match=re.escape(words)):
            list(lease.map(function, [b""] * 3))
        assert lives(lease)


@pytest.mark.parametrize(("function", "words"), CRASHES)
def test_crash_on_the_command_line(site: Site, hostile: Path, function: str, words: str) -> None:
    done = site.run("call", hostile, function)
    assert (done.returncode, done.stdout) == (70, b"")
    assert done.stderr.decode().endswith(f"rfaas: {words}\n")


@pytest.mark.parametrize("extra", [1, 4096, 100 * SLOT])
def test_write_past_the_output(session: Session, hostile: Path, extra: int) -> None:
    """The first byte past it is in the guard page, and neighbours' slots are behind that."""
    with session.lease(library=hostile) as lease:
        exact = lease.call("write_past_output", number(SLOT))
        assert exact == b"\xab" * SLOT
        with pytest.raises(WorkerCrashedError, match="SIGSEGV"):
            lease.call("write_past_output", number(SLOT + extra))
        assert lives(lease)


@pytest.mark.parametrize("size", [SLOT + 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("function", ["report_too_much", "set_result_size"])
def test_report_more_than_fits(session: Session, hostile: Path, function: str, size: int) -> None:
    with session.lease(library=hostile) as lease:
        worker = workers_of(os.getpid())
        with pytest.raises(OutputTooLargeError) as failed:
            lease.call(function, number(size))
        assert failed.value.text == (
            f"function {function} reported an output of {size} bytes, a slot holds {SLOT}"
        )
        assert failed.value.hint == f"lease with slot_bytes={size} or more"
        assert len(lease.call(function, number(SLOT))) == SLOT
        assert workers_of(os.getpid()) == worker


def test_report_more_than_fits_on_the_command_line(site: Site, hostile: Path) -> None:
    done = site.run("call", hostile, "report_too_much", "-", stdin=number(SLOT + 1))
    assert (done.returncode, done.stdout) == (70, b"")
    assert b"reported an output of 65537 bytes, a slot holds 65536\nhint: " in done.stderr


def test_input_larger_than_the_slot(session: Session, shipped: Path) -> None:
    with session.lease(library=shipped) as lease:
        assert bytes(lease.call("echo", b"x" * SLOT)) == b"x" * SLOT
        for attempt in (lease.call, lease.submit):
            with pytest.raises(PayloadTooLargeError) as failed:
                attempt("echo", bytes(SLOT + 1))
            assert failed.value.text == (
                "input of 65537 bytes is too large for echo: a slot holds 65536"
            )
            assert failed.value.hint == "lease with slot_bytes=65537 or more"
        with pytest.raises(PayloadTooLargeError):
            list(lease.map("echo", [b"x", bytes(SLOT + 1)]))
        with pytest.raises(PayloadTooLargeError):
            lease.buffer(SLOT + 1)
        assert bytes(lease.call("echo", b"y" * SLOT)) == b"y" * SLOT


def test_failure_with_a_text(session: Session, site: Site, hostile: Path) -> None:
    with session.lease(library=hostile) as lease:
        with pytest.raises(FunctionFailedError) as failed:
            lease.call("fail_with_text", b"no such galaxy")
        assert failed.value.status == 7
        assert failed.value.text == ("function fail_with_text failed with status 7: no such galaxy")
        for status in (1, -1, 2**31 - 1, -(2**31)):
            with pytest.raises(FunctionFailedError, match=r"\(no text\)") as failed:
                lease.call("return_status", number(status % 2**32))
            assert failed.value.status == status
        with pytest.raises(FunctionFailedError) as failed:  # text size is the function's word
            lease.call("set_text_size", number(2**32 - 1))
        assert failed.value.text.endswith("status 1: (no text)")
        with pytest.raises(OutputTooLargeError):
            lease.call("scribble_call")
        assert lives(lease)
    done = site.run("call", hostile, "fail_with_text", "-", stdin=b"no such galaxy")
    assert (done.returncode, done.stdout) == (70, b"")
    assert done.stderr == b"rfaas: function fail_with_text failed with status 7: no such galaxy\n"


def test_loop_past_its_deadline(session: Session, hostile: Path) -> None:
    with session.lease(library=hostile) as lease:
        (worker,) = workers_of(os.getpid())
        with pytest.raises(DeadlineExceededError) as late:
            lease.call("loop_forever", timeout=0.05)
        assert late.value.text == (
            "a call of loop_forever did not return within 0.05 s; its worker was stopped"
        )
        assert "the next call starts a new worker" in late.value.hint
        assert not is_alive(worker)
        assert lives(lease)
        with pytest.raises(DeadlineExceededError):
            lease.submit("loop_forever", timeout=0.05).result()
        assert lives(lease)
    with (
        session.lease(library=hostile, call_timeout_s=0.05) as lease,
        pytest.raises(DeadlineExceededError),
    ):
        next(lease.map("loop_forever", [b""]))
    assert workers_of(os.getpid()) == []


def test_answer_that_makes_no_sense(session: Session, hostile: Path) -> None:
    """A worker that cannot be believed any more is replaced, like one that died."""
    if session.config.lane.transport == "verbs":
        pytest.skip("over verbs, a client reads nothing of what stands in the worker's ring")
    slots = 4
    responses = wire.PAGE_BYTES + wire.cells_for(slots) * wire.CELL_BYTES
    with session.lease(library=hostile, slots=slots) as lease:
        (worker,) = workers_of(os.getpid())
        with pytest.raises(ProtocolError, match="a slot or size that was never asked for"):
            lease.call("lie_in_the_ring", number(wire.slots_offset(slots) - responses))
        assert lives(lease)
        assert not is_alive(worker)
        assert lives(lease)


def test_loop_past_its_deadline_on_the_command_line(site: Site, hostile: Path) -> None:
    done = site.run("call", "--timeout", "0.1", hostile, "loop_forever")
    assert (done.returncode, done.stdout) == (124, b"")
    assert b"rfaas: a call of loop_forever did not return within 0.1 s; its" in done.stderr


def test_deadline_takes_the_calls_behind_it_along(
    session: Session, held: Path, gate: Callable[[], Gate]
) -> None:
    """All calls in flight on that worker fail, each with the reason; later ones are served."""
    with session.lease(library=held) as lease:
        one = gate()
        first = lease.submit("hold", one.data, timeout=0.05)
        behind = [lease.submit("copy", b"x") for _ in range(5)]
        one.begun()
        with pytest.raises(DeadlineExceededError):
            first.result()
        for future in behind:
            assert isinstance(future.exception(), WorkerCrashedError)
            assert "a call of hold did not return within 0.05 s" in str(future.exception())
        one.ended()
        assert bytes(lease.call("copy", b"x")) == b"x"


def test_two_deadlines_at_once(session: Session, held: Path, gate: Callable[[], Gate]) -> None:
    """The second to act finds the worker ended and another one there, which it leaves alone."""
    one = gate()
    with session.lease(library=held) as lease:
        (old,) = lease._lanes
        with pytest.raises(DeadlineExceededError):
            lease.call("spin", timeout=0.02)
        future = lease.submit("hold", one.data)
        worker = one.begun()
        error = lease._late(old, "spin", 0.02)
        assert isinstance(error, DeadlineExceededError)
        lease._broken(old)
        lease._stop_worker("late", lease._worker - 1)
        assert workers_of(os.getpid()) == [worker]
        one.release()
        assert bytes(future.result()) == one.data


def test_no_slot_within_the_deadline(
    session: Session, held: Path, gate: Callable[[], Gate]
) -> None:
    """Nothing of that call was sent, so the worker goes on with the call that has the slot."""
    one = gate()
    with session.lease(library=held, slots=1) as lease:
        future = lease.submit("hold", one.data)
        worker = one.begun()
        with pytest.raises(DeadlineExceededError) as late:
            lease.call("copy", timeout=0.02)
        assert late.value.text == "no slot was free for a call of copy within 0.02 s"
        assert workers_of(os.getpid()) == [worker]
        one.release()
        assert bytes(future.result()) == one.data


def test_a_notice_that_another_thread_takes(session: Session, hostile: Path) -> None:
    class Taken(deque[Message]):
        def __bool__(self) -> bool:
            found = len(self) > 0
            self.clear()  # by a thread that looks at the same time
            return found

    with session.lease(library=hostile) as lease:
        assert lease._link is not None
        lease._link.notices = Taken([WorkerExited(lease=lease.id, worker=1, text="it died")])
        lease._listen(0.0)
        lease._link.notices = deque()
        assert lives(lease)


@pytest.mark.parametrize("where", ["answer", "lanes", "table"])
def test_interrupted_start(
    session: Session, hostile: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Ctrl-C while a worker is started: the next call starts one."""
    with session.lease(library=hostile) as lease:
        with pytest.raises(WorkerCrashedError):
            lease.call("crash_segv")
        assert lease._link is not None

        def interrupt(*_: object, **__: object) -> NoReturn:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            if where == "answer":
                patch.setattr(lease._link, "receive", interrupt)
            elif where == "lanes":
                patch.setattr("rfaas.transport.shm.TRANSPORT.accept", interrupt, raising=True)
            else:
                patch.setattr(lease, "_table", interrupt)
            with pytest.raises(KeyboardInterrupt):
                lease.call("empty_output")
        assert lives(lease)


def test_worker_killed_in_mid_call(session: Session, held: Path, gate: Callable[[], Gate]) -> None:
    one = gate()
    with session.lease(library=held) as lease:
        future = lease.submit("hold", one.data)
        os.kill(one.begun(), signal.SIGKILL)
        with pytest.raises(WorkerCrashedError, match=r"killed by SIGKILL \(Killed\)"):
            future.result()
        assert bytes(lease.call("copy", b"again")) == b"again"


def test_worker_killed_between_calls(session: Session, shipped: Path) -> None:
    with session.lease(library=shipped) as lease:
        (worker,) = workers_of(os.getpid())
        assert bytes(lease.call("echo", b"1")) == b"1"
        os.kill(worker, signal.SIGKILL)
        wait_for_end(worker)
        with pytest.raises(WorkerCrashedError, match="SIGKILL"):
            lease.call("echo", b"2")
        assert bytes(lease.call("echo", b"3")) == b"3"


def test_crash_limit(site: Site, hostile: Path) -> None:
    with site.private_session(executor__workers_crashed_max=3) as session:
        with session.lease(library=hostile) as lease:
            for _ in range(3):
                with pytest.raises(WorkerCrashedError):
                    lease.call("crash_segv")
            for _ in range(2):
                with pytest.raises(CapacityError) as refused:
                    lease.call("empty_output")
                assert re.fullmatch(
                    r"lease [0-9a-f]{8} has crashed 3 workers, no more are started",
                    refused.value.text,
                )
                assert refused.value.hint == "mend the function, then request a new lease"
        with session.lease(library=hostile) as lease:
            assert lives(lease)


def test_deadlines_do_not_count_as_crashes(site: Site, hostile: Path) -> None:
    with (
        site.private_session(executor__workers_crashed_max=1) as session,
        session.lease(library=hostile) as lease,
    ):
        for _ in range(2):
            with pytest.raises(DeadlineExceededError):
                lease.call("loop_forever", timeout=0.02)
            assert lives(lease)


@pytest.mark.parametrize("ending", ["release", "crash", "stop"])
def test_children_of_a_function_go_with_its_worker(
    session: Session, held: Path, gate: Callable[[], Gate], ending: str
) -> None:
    """Also those that have left its group and session, and their children."""
    one = gate()
    lease = session.lease(library=held)
    (child,) = struct.unpack("<i", lease.call("hold_in_children", one.data))
    worker = one.begun()
    assert is_alive(child)
    if ending == "crash":
        os.kill(worker, signal.SIGKILL)
    elif ending == "stop":
        with pytest.raises(DeadlineExceededError):
            lease.call("spin", b"", timeout=0.05)
    else:
        lease.close()
    one.ended()
    wait_for_end(worker, child)
    lease.close()


@pytest.mark.parametrize("what", ["leave_orphan", "leave_daemon"])
def test_orphans_of_a_function_outlive_other_workers(
    session: Session, held: Path, hostile: Path, gate: Callable[[], Gate], what: str
) -> None:
    """What a worker has left behind belongs to it, not to the next one that dies."""
    one = gate()
    with session.lease(library=held) as lease, session.lease(library=hostile) as other:
        if what == "leave_daemon" and "cgroup" in lease.lacks:
            pytest.skip("without control groups, a daemon cannot be told from another lease's")
        lease.call(what, one.data)
        one.begun()
        for _ in range(3):
            with pytest.raises(WorkerCrashedError):
                other.call("crash_segv")
        assert one.is_held()
    one.ended()


def test_memory_limit(session: Session, hostile: Path) -> None:
    """A function that asks for more than its lease has gets less, and nobody else does."""
    with session.lease(library=hostile, memory="16MiB") as lease:
        if "cgroup" in lease.lacks:
            (got,) = struct.unpack("<I", lease.call("leak_memory", number(4096)))
            # 256 MiB are a bare worker's allowance, sandbox/limits.py.
            assert 16 <= got <= 16 + 256
        else:
            with pytest.raises(WorkerCrashedError, match="its memory limit of 16777216 bytes"):
                lease.call("leak_memory", number(4096))
    with session.lease(library=hostile, memory="512MiB") as lease:
        assert bytes(lease.call("leak_memory", number(400))) == number(400)
