"""The Python API as a user has it: call, submit, map, buffer, from one thread and from many."""

from __future__ import annotations

import array
import concurrent.futures
import gc
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import rfaas
from rfaas.client import Lease, Session
from rfaas.errors import (
    CapacityError,
    ClosedError,
    DeadlineExceededError,
    FunctionFailedError,
    UsageError,
    WorkerCrashedError,
)
from rfaas.native._calls import Call
from tests.harness.gate import Gate
from tests.harness.processes import PATIENCE_S, until, workers_of
from tests.harness.site import Site

SLOTS = 16


@pytest.fixture
def session(site: Site) -> Iterator[Session]:
    """With a private executor."""
    with site.private_session() as session:
        yield session


@pytest.fixture
def lease(session: Session, shipped: Path) -> Iterator[Lease]:
    """One core that echoes."""
    with session.lease(library=shipped) as lease:
        yield lease


def test_connect_finds_nobody_and_starts_its_own(
    site: Site, shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in site.environ.items():
        monkeypatch.setenv(key, value)
    with rfaas.connect() as session:
        assert session.where == "private"
        with session.lease(cores=2, library=str(shipped)) as lease:
            assert bytes(lease.call("echo", b"abc")) == b"abc"
    site.start("all")
    with rfaas.connect() as session:
        assert session.where == site.address()
        with session.lease(cores=2, library=shipped) as lease:
            assert bytes(lease.call("echo", b"abc")) == b"abc"
    with rfaas.connect(overrides={"client.executor": "private"}) as session:
        assert session.where == "private"


def test_anything_with_a_buffer_is_an_input(lease: Lease) -> None:
    numbers = array.array("d", range(1000))
    for data in (b"abc", bytearray(b"abc"), memoryview(b"xabcx")[1:4], numbers):
        found = lease.call("echo", data)
        assert isinstance(found, memoryview)
        assert found == memoryview(data).cast("B")
    assert lease.call("echo", numbers).cast("d")[999] == 999.0
    with pytest.raises(BufferError):
        lease.call("echo", memoryview(b"abcdef")[::2])
    with pytest.raises(TypeError):
        lease.call("echo", "text")  # type: ignore[arg-type]
    assert bytes(lease.call("echo", b"still")) == b"still"


def test_future(lease: Lease) -> None:
    future = lease.submit("echo", b"abc")
    assert future.result(timeout=PATIENCE_S) == b"abc"
    assert bytes(future.result()) == b"abc"  # as often as one likes
    assert future.done()
    assert not future.running()
    assert not future.cancel()
    assert not future.cancelled()
    assert future.exception() is None
    assert future.function == "echo"


def test_future_that_fails(session: Session, hostile: Path) -> None:
    with session.lease(library=hostile) as lease:
        future = lease.submit("fail_with_text", b"why not")
        with pytest.raises(FunctionFailedError, match="status 7: why not"):
            future.result()
        assert isinstance(future.exception(), FunctionFailedError)
        assert future.done()


def test_callbacks(lease: Lease) -> None:
    """Also where nobody waits for the future, or keeps it."""
    called = threading.Semaphore(0)
    seen: list[Call] = []

    def note(future: Call) -> None:
        seen.append(future)
        called.release()

    future = lease.submit("echo", b"abc")
    future.add_done_callback(note)
    future.add_done_callback(note)
    del future
    for _ in range(2):
        assert called.acquire(timeout=PATIENCE_S)
    assert [one.result() for one in seen] == [b"abc", b"abc"]
    finished = lease.submit("echo", b"x")
    finished.result()
    finished.add_done_callback(note)  # at once, in this thread
    assert seen[-1] is finished


def test_callback_that_raises(lease: Lease, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: object) -> None:
        raise ValueError("a bug of the user's")

    future = lease.submit("echo", b"abc")
    future.result()
    future.add_done_callback(fail)
    assert "a callback of echo failed" in caplog.text
    caplog.clear()  # its traceback has the lease
    assert bytes(lease.call("echo", b"x")) == b"x"


def test_callback_of_a_call_that_crashes(session: Session, hostile: Path) -> None:
    failed: concurrent.futures.Future[object] = concurrent.futures.Future()
    with session.lease(library=hostile) as lease:
        future = lease.submit("crash_segv")
        future.add_done_callback(lambda one: failed.set_result(one.exception()))
        assert isinstance(failed.result(PATIENCE_S), WorkerCrashedError)


def test_callback_of_a_call_that_is_late(session: Session, hostile: Path) -> None:
    failed: concurrent.futures.Future[object] = concurrent.futures.Future()
    with session.lease(library=hostile) as lease:
        future = lease.submit("loop_forever", timeout=0.02)
        future.add_done_callback(lambda one: failed.set_result(one.exception()))
        assert isinstance(failed.result(PATIENCE_S), DeadlineExceededError)
        assert lease.call("empty_output") == b""


def test_callbacks_do_not_wait_for_one_another(
    session: Session, held: Path, gate: Callable[[], Gate]
) -> None:
    """A slow call's callback is the first to be watched, and the last to be called."""
    one = gate()
    called = threading.Semaphore(0)
    seen: list[str] = []

    def note(future: Call) -> None:
        seen.append(future.function)
        called.release()

    with session.lease(cores=2, library=held) as lease:
        slow = lease.submit("hold", one.data)
        slow.add_done_callback(note)
        one.begun()
        for _ in range(5):
            lease.submit("copy", b"x").add_done_callback(note)  # on the other lane
            assert called.acquire(timeout=PATIENCE_S)
        assert seen == ["copy"] * 5
        one.release()
        assert called.acquire(timeout=PATIENCE_S)
        assert seen[5:] == ["hold"]


def test_map_is_in_order_and_lazy(lease: Lease) -> None:
    taken = []

    def inputs() -> Iterator[bytes]:
        for number in range(10_000):
            taken.append(number)
            yield struct.pack("<I", number) * (1 + number % 50)

    results = lease.map("echo", inputs())
    assert taken == []
    assert next(results) == struct.pack("<I", 0)
    assert len(taken) <= SLOTS + 1
    for number, result in enumerate(results, start=1):
        assert result == struct.pack("<I", number) * (1 + number % 50)
    assert len(taken) == 10_000


def test_map_that_is_left_half_way(lease: Lease) -> None:
    results = lease.map("echo", [b"x" * 200] * 1000)
    next(results)
    results.close()
    assert list(lease.map("echo", [b"y" * 200] * 100)) == [b"y" * 200] * 100
    with pytest.raises(RuntimeError, match="of the user's"):
        list(lease.map("echo", _raises_after(5)))
    assert list(lease.map("echo", [b"z"] * 100)) == [b"z"] * 100


def _raises_after(count: int) -> Iterator[bytes]:
    yield from [b"x"] * count
    raise RuntimeError("a bug of the user's")


def test_buffer_is_used_in_place(session: Session, counter: Path) -> None:
    """`double_f64` assumes alignment, and an input that is used in place can be seen changing."""
    with session.lease(library=counter) as lease:
        buffer = lease.buffer(8 * 1000)
        doubles = buffer.cast("d")
        for factor in (1, 2, 3):
            for index in range(1000):
                doubles[index] = factor * index
            result = lease.call("double_f64", doubles).cast("d")
            assert result.tolist() == [2 * factor * index for index in range(1000)]
        future = lease.submit("sum_f64", buffer)
        assert struct.unpack("<d", future.result()) == (3 * 999 * 500,)


def test_buffers_leave_one_slot_for_calls(lease: Lease) -> None:
    buffers = [lease.buffer(100) for _ in range(SLOTS - 1)]
    with pytest.raises(CapacityError, match="all slots but one of 16 are in use") as full:
        lease.buffer(100)
    assert full.value.hint == "release some, or lease with more slots"
    for number, buffer in enumerate(buffers):
        buffer[:] = bytes([number]) * 100
    assert bytes(lease.call("echo", b"x" * 5000)) == b"x" * 5000
    futures = [lease.submit("echo", buffer) for buffer in buffers]
    for number, future in enumerate(futures):
        assert bytes(future.result()) == bytes([number]) * 100
    del buffers, buffer, futures, future
    gc.collect()
    assert [len(lease.buffer(100)) for _ in range(3 * SLOTS)] == [100] * 3 * SLOTS


def test_buffer_in_flight_is_refused(
    session: Session, held: Path, gate: Callable[[], Gate]
) -> None:
    one = gate()
    with session.lease(library=held) as lease:
        padding = b"/" * 200  # not inline: the buffer's own memory is what is sent
        buffer = lease.buffer(len(padding) + len(one.data))
        buffer[:] = padding + one.data
        future = lease.submit("hold", buffer)
        one.begun()
        with pytest.raises(UsageError, match="the buffer is in use by a call"):
            lease.submit("copy", buffer)
        one.release()
        assert bytes(future.result()) == padding + one.data


def test_more_futures_than_slots(lease: Lease) -> None:
    inputs = [struct.pack("<I", number) * 100 for number in range(50 * SLOTS)]
    futures = [lease.submit("echo", data) for data in inputs]
    assert [future.result() for future in reversed(futures)] == inputs[::-1]


def test_futures_that_nobody_wants(lease: Lease) -> None:
    for number in range(20 * SLOTS):
        lease.submit("echo", struct.pack("<I", number) * 100)
    assert bytes(lease.call("echo", b"x" * 5000)) == b"x" * 5000


def test_results_are_kept_past_slots_calls_and_close(session: Session, shipped: Path) -> None:
    inputs = [struct.pack("<I", number) * 1000 for number in range(10 * SLOTS)]
    lease = session.lease(library=shipped)
    results = [lease.call("echo", data) for data in inputs]
    results += [lease.submit("echo", data).result() for data in inputs]
    part = results[0][4:8]
    assert list(lease.map("echo", inputs)) == inputs
    lease.close()
    del lease
    session.close()
    gc.collect()
    assert results == inputs + inputs
    assert part == struct.pack("<I", 0)


def test_many_threads_on_one_lease(session: Session, shipped: Path) -> None:
    threads, calls = 8, 300

    def work(lease: Lease, thread: int) -> int:
        right = 0
        for number in range(calls):
            data = struct.pack("<II", thread, number) * (1 + number % 40)
            if number % 3 == 0:
                found = lease.submit("echo", data).result()
            elif number % 3 == 1:
                found = lease.call("echo", data)
            else:
                found = memoryview(next(lease.map("echo", [data])))
            right += bytes(found) == data
        return right

    with (
        session.lease(cores=2, library=shipped) as lease,
        concurrent.futures.ThreadPoolExecutor(threads) as pool,
    ):
        assert list(pool.map(work, [lease] * threads, range(threads))) == [calls] * threads


def test_threads_that_wait_for_one_another(
    session: Session, held: Path, gate: Callable[[], Gate]
) -> None:
    """While one thread waits for a slow call, another's call on the other core returns."""
    one = gate()
    with (
        session.lease(cores=2, library=held) as lease,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        slow = pool.submit(lease.call, "hold", one.data)
        one.begun()
        for _ in range(100):
            assert bytes(lease.call("copy", b"quick")) == b"quick"
        one.release()
        assert bytes(slow.result(PATIENCE_S)) == one.data


@pytest.mark.parametrize("timeout", [0, -1, 0.0])
def test_timeout_that_cannot_be(lease: Lease, timeout: float) -> None:
    with pytest.raises(UsageError, match=f"timeout must be above 0 seconds, not {timeout}"):
        lease.call("echo", b"x", timeout=timeout)
    future = lease.submit("echo", b"x")
    future.done()
    assert future.result(timeout=PATIENCE_S) == b"x"


def test_timeout_of_a_result(session: Session, held: Path, gate: Callable[[], Gate]) -> None:
    one = gate()
    with session.lease(library=held) as lease:
        future = lease.submit("hold", one.data)
        one.begun()
        for timeout in (0, 0.01):
            with pytest.raises(TimeoutError, match="no result of hold yet; the call goes on"):
                future.result(timeout=timeout)
        assert not future.done()
        one.release()
        assert bytes(future.result()) == one.data


def test_nested_sessions(session: Session, site: Site, shipped: Path, lease: Lease) -> None:
    with site.private_session() as inner, inner.lease(library=shipped) as other:
        assert bytes(other.call("echo", b"inner")) == b"inner"
        assert bytes(lease.call("echo", b"outer")) == b"outer"
        assert other.id != lease.id
    assert bytes(lease.call("echo", b"outer")) == b"outer"


def test_closed(session: Session, shipped: Path) -> None:
    lease = session.lease(library=shipped)
    future = lease.submit("echo", b"x")
    future.result()
    assert "live" in repr(lease)
    lease.close()
    lease.close()
    assert "over" in repr(lease)
    assert bytes(future.result()) == b"x"
    for attempt in (lease.call, lease.submit):
        with pytest.raises(ClosedError, match="the lease was released"):
            attempt("echo", b"x")
    with pytest.raises(ClosedError, match="the lease was released"):
        lease.buffer(10)
    open_still = session.lease(library=shipped)
    session.close()
    session.close()
    with pytest.raises(ClosedError, match="the lease was released"):
        open_still.call("echo", b"x")
    with pytest.raises(ClosedError, match="the session is closed"):
        session.lease(library=shipped)


def test_close_in_mid_call(session: Session, held: Path, gate: Callable[[], Gate]) -> None:
    one = gate()
    lease = session.lease(library=held)
    future = lease.submit("hold", one.data)
    one.begun()
    lease.close()
    one.ended()
    with pytest.raises(ClosedError, match="the lease was released"):
        future.result()


def test_lease_that_is_forgotten(site: Site, held: Path) -> None:
    """Without `close` or `with`: its cores come back by themselves, as with any resource."""
    node = site.start("all")
    with site.session() as session:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # for who has them shown
            session.lease(cores=2, library=held).call("copy", b"x")
            gc.collect()
        until(lambda: [one.cores_free for one in session.nodes()] == [2], "two free cores")
        assert workers_of(node.pid) == []
        with session.lease(cores=2, library=held) as lease:
            assert bytes(lease.call("copy", b"x")) == b"x"


def test_what_a_lease_says_of_itself(session: Session, shipped: Path) -> None:
    with session.lease(cores=2, library=shipped) as lease:
        assert len(lease.id) == 32
        assert (lease.node, lease.isolation) == ("private", "process")
        assert len(lease.cpus) == 2
        assert {"echo", "thumbnail"} <= set(lease.functions)
        assert {"connect", "start_worker", "open_lanes"} <= set(lease.steps_ns)


def test_the_steps_of_a_start_are_all_of_it(session: Session, hostile: Path) -> None:
    """Whoever takes them; also of a worker that comes after one that crashed."""
    with session.lease(cores=2, library=hostile) as lease:
        assert_whole(lease.steps_ns)
        assert "send_library" in lease.steps_ns
        with pytest.raises(WorkerCrashedError):
            lease.call("crash_abort")
        before = dict(lease.steps_ns)
        lease.call("empty_output")
        assert_whole(lease.steps_ns)
        assert "send_library" not in lease.steps_ns
        assert lease.steps_ns["start_worker"] != before["start_worker"]


def assert_whole(steps_ns: dict[str, int]) -> None:
    outer = {"request", "connect", "start_worker", "open_lanes"}
    assert outer <= set(steps_ns)
    parts = {step: ns for step, ns in steps_ns.items() if step not in outer}
    assert all(ns > 0 for ns in parts.values())
    assert sum(parts.values()) == steps_ns["start_worker"]
    assert {step.partition(".")[0] for step in parts} - {"send_library"} == {
        "link",
        "node",
        "worker",
    }
