"""The contract that every transport keeps when something is not as it should be."""

from __future__ import annotations

import os
import random
import signal
import struct
import threading
import time

import pytest

from rfaas.errors import (
    ClosedError,
    DeadlineExceededError,
    NotDoneError,
    ProtocolError,
    RfaasError,
    UsageError,
    WorkerCrashedError,
)
from rfaas.native._calls import Call, Lanes
from rfaas.proto import wire
from rfaas.proto.wire import Status
from tests.transport.contract import SLOT_BYTES, all_slots_work, pattern, u32
from tests.transport.contract_threads import naps, processor_ns
from tests.transport.served import Gate, Serve, Served, eventually

NS = 1_000_000_000


class Waiting:
    """Hot, warm and in between, at both ends."""

    def test_always_hot_never_sleeps(self, serve: Serve) -> None:
        served = serve(hot_timeout_ms=-1)
        for index in range(100):
            assert served.calls.call("echo", u32(index)) == u32(index)
            os.sched_yield()
        assert served.account(wire.ACCOUNT_SLEEPING_NS) == 0
        assert served.account(wire.ACCOUNT_WAKEUPS) == 0

    @pytest.mark.parametrize("hot_timeout_ms", [0, 1])
    @pytest.mark.parametrize("spin_us", [0, 1000])
    def test_sleeps_and_wakes(self, serve: Serve, hot_timeout_ms: int, spin_us: int) -> None:
        served = serve(hot_timeout_ms=hot_timeout_ms, spin_us=spin_us, slots=4)
        for index in range(20):
            eventually(lambda: served.header(wire.HEADER_WORKER_SLEEPS) == 1)
            assert served.calls.call("echo", u32(index)) == u32(index)
            eventually(lambda: served.header(wire.HEADER_WORKER_SLEEPS) == 1)
            data = [pattern(size) for size in range(0, 1000, 100)]
            assert list(served.calls.map("echo", data)) == data
        assert served.account(wire.ACCOUNT_WAKEUPS) >= 1
        assert served.account(wire.ACCOUNT_SLEEPING_NS) > 0
        assert served.account(wire.ACCOUNT_CALLS) == 20 * 11

    def test_the_client_sleeps_and_wakes(self, serve: Serve, gate: Gate) -> None:
        served = serve(spin_us=0)
        results: list[bytes] = []
        for _ in range(5):
            thread = threading.Thread(
                target=lambda: results.append(bytes(served.calls.call("hold", gate.data)))
            )
            thread.start()
            gate.entered()
            eventually(lambda: served.header(wire.HEADER_CLIENT_SLEEPS) == 1)
            gate.let()
            thread.join()
        assert results == [gate.data] * 5

    def test_a_race_of_both(self, serve: Serve, seed: int) -> None:
        """Worker and client go to sleep at every chance, each while the other calls it."""
        served = serve(hot_timeout_ms=0, spin_us=0, slots=2)
        jitter = random.Random(seed)
        for index in range(2000):
            for _ in range(jitter.randrange(3)):
                os.sched_yield()
            assert served.calls.call("echo", u32(index)) == u32(index)

    def test_deadline(self, serve: Serve, gate: Gate) -> None:
        served = serve(slots=3)
        with pytest.raises(DeadlineExceededError, match=r"hold.*0\.02 s"):
            served.calls.call("hold", gate.data, timeout=0.02)
        future = served.calls.submit("echo", b"behind it")
        with pytest.raises(TimeoutError, match="no result of echo yet; the call goes on"):
            future.result(timeout=0.001)
        late = served.calls.submit("echo", b"late", timeout=0.001)
        with pytest.raises(DeadlineExceededError, match=r"echo.*0\.001 s"):
            late.result()
        with pytest.raises(DeadlineExceededError, match=r"echo.*0\.002 s"):
            served.calls.call("echo", timeout=0.002)  # which waits for a slot
        gate.let()
        assert future.result(timeout=60) == b"behind it"
        for timeout in (0, -1, float("nan")):
            with pytest.raises(UsageError, match="timeout"):
                served.calls.call("echo", timeout=timeout)
        assert all_slots_work(served)

    def test_deadline_settles_a_future(self, serve: Serve, gate: Gate) -> None:
        """Its result may come later: the call has failed, and stays so."""
        served = serve(slots=3)
        late = served.calls.submit("hold", gate.data, timeout=0.001)
        seen: list[Call] = []
        late.add_done_callback(seen.append)
        error = late.exception()
        assert isinstance(error, DeadlineExceededError)
        assert seen == [late]
        assert late.done()
        gate.let()
        assert served.calls.call("echo", b"behind it") == b"behind it"
        for _ in range(2):
            with pytest.raises(DeadlineExceededError, match=r"hold.*0\.001 s"):
                late.result()
        assert late.exception() is error
        served.calls.watched.clear()
        assert all_slots_work(served)

    def test_deadline_of_a_call_that_was_never_sent(self, serve: Serve, gate: Gate) -> None:
        """It waits for a slot, alone or while another thread polls: nobody else pays for it."""
        served = serve(slots=1)
        served.calls._late = None  # type: ignore[method-assign, assignment]
        held = served.calls.submit("hold", gate.data)
        gate.entered()
        results: list[bytes] = []
        thread = threading.Thread(target=lambda: results.append(bytes(held.result())))
        for polled in (False, True):
            if polled:
                thread.start()
                eventually(lambda: served.header(wire.HEADER_CLIENT_SLEEPS) == 1)
            with pytest.raises(DeadlineExceededError, match=r"no slot.*echo within 0\.001 s"):
                served.calls.call("echo", timeout=0.001)
        gate.let()
        thread.join()
        assert results == [gate.data]

    @pytest.mark.parametrize("timeout", [float("inf"), 1e11, 1e300])
    def test_for_ever(self, serve: Serve, gate: Gate, timeout: float) -> None:
        calls = serve().calls
        future = calls.submit("hold", gate.data, timeout=timeout)
        gate.entered()
        with pytest.raises(NotDoneError):
            future.result(timeout=0.001)
        threading.Thread(target=gate.let).start()
        assert future.result(timeout=timeout) == gate.data
        gate.let()
        assert calls.call("hold", gate.data, timeout=timeout) == gate.data

    def test_no_patience(self, serve: Serve, gate: Gate) -> None:
        future = serve().calls.submit("hold", gate.data)
        for timeout in (0, -1, 0.001):
            with pytest.raises(NotDoneError, match="no result of hold yet"):
                future.result(timeout=timeout)
            with pytest.raises(TimeoutError):
                future.exception(timeout=timeout)
        with pytest.raises(UsageError, match="timeout"):
            future.result(timeout=float("nan"))
        gate.let()
        assert future.result() == gate.data

    def test_threads_that_watch_sleep(self, serve: Serve, gate: Gate) -> None:
        """One thread polls; those that wait for what it collects use no processor for it."""
        served = serve(spin_us=1000)
        held = served.calls.submit("hold", gate.data)
        gate.entered()

        def wait() -> None:
            with pytest.raises(NotDoneError):
                held.result(timeout=0.5)

        used_ns = processor_ns(wait)
        gate.let()
        assert held.result() == gate.data
        # Of 1.5 s.  Where clocks count whole ticks, as in a guest, naps are not free.
        assert used_ns < 0.25 * NS + 2 * processor_ns(naps)

    def test_deadline_of_all_calls(self, serve: Serve, gate: Gate) -> None:
        served = serve(slots=2, timeout_s=0.02)
        with pytest.raises(DeadlineExceededError, match=r"hold.*0\.02 s"):
            served.calls.call("hold", gate.data)
        with pytest.raises(DeadlineExceededError):
            list(served.calls.map("echo", [b"behind it"]))
        gate.let()


class Endings:
    """The worker dies."""

    def crashed(self, call: Call) -> bool:
        return isinstance(call.exception(), WorkerCrashedError) and call.done()

    def test_before_a_call(self, serve: Serve) -> None:
        served = serve(slots=2)
        before = served.calls.submit("echo", b"answered")
        eventually(before.done)
        served.kill()
        for _ in range(4):
            with pytest.raises(WorkerCrashedError, match="gone"):
                served.calls.call("echo", b"x")
        assert before.result() == b"answered"

    @pytest.mark.parametrize("spin_us", [0, 10_000_000], ids=["asleep", "spinning"])
    def test_in_mid_call(self, serve: Serve, gate: Gate, spin_us: int) -> None:
        served = serve(spin_us=spin_us)
        errors: list[object] = []

        def call() -> None:
            try:
                served.calls.call("hold", gate.data)
            except RfaasError as error:
                errors.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        gate.entered()
        if not spin_us:
            eventually(lambda: served.header(wire.HEADER_CLIENT_SLEEPS) == 1)
        served.kill()
        thread.join()
        assert [type(error) for error in errors] == [WorkerCrashedError]

    def test_with_several_in_flight(self, serve: Serve, gate: Gate) -> None:
        served = serve(slots=8)
        answered = [served.calls.submit("echo", pattern(500, seed)) for seed in range(3)]
        held = served.calls.submit("hold", gate.data)
        behind = [served.calls.submit("echo", b"behind") for _ in range(4)]
        gate.entered()
        served.kill()
        assert [future.result() for future in answered] == [pattern(500, s) for s in range(3)]
        assert all(self.crashed(future) for future in [*behind, held])
        with pytest.raises(WorkerCrashedError) as one:
            held.result()
        with pytest.raises(WorkerCrashedError) as other:
            behind[0].result()
        assert one.value is not other.value  # each has a traceback of its own

    def test_in_mid_map(self, serve: Serve, gate: Gate) -> None:
        served = serve(slots=4)
        gate.let(2)
        results = served.calls.map("hold", [gate.data] * 10)
        assert next(results) == gate.data
        served.kill()
        with pytest.raises(WorkerCrashedError):
            list(results)

    def test_callbacks_hear_of_it(self, serve: Serve, gate: Gate) -> None:
        served = serve()
        future = served.calls.submit("hold", gate.data)
        seen: list[RfaasError | None] = []
        future.add_done_callback(lambda call: seen.append(call.exception()))
        gate.entered()
        served.kill()
        assert self.crashed(future)
        assert [type(error) for error in seen] == [WorkerCrashedError]
        served.calls.watched.clear()

    def test_what_was_lent_stays_readable(self, serve: Serve) -> None:
        served = serve()
        lent, result = served.calls.buffer(1000), served.calls.call("echo", pattern(1000))
        served.kill()
        lent[:] = pattern(1000)
        assert lent == result

    @pytest.mark.parametrize(
        ("name", "data", "ending"),
        [
            ("crash_segv", b"", signal.SIGSEGV),
            ("crash_abort", b"", signal.SIGABRT),
            ("write_past_output", u32(SLOT_BYTES + 1), signal.SIGSEGV),
            ("call_exit", b"", 3),
            ("call_pthread_exit", b"", 72),
        ],
    )
    def test_by_a_function(
        self, serve: Serve, capfd: pytest.CaptureFixture[str], name: str, data: bytes, ending: int
    ) -> None:
        served = serve(slot_bytes=SLOT_BYTES)
        future = served.calls.submit(name, data)
        status = served.reap()
        ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        assert ended == ending
        assert self.crashed(future)

    def test_output_up_to_the_guard(self, serve: Serve) -> None:
        served = serve(slots=1, slot_bytes=SLOT_BYTES)
        assert served.calls.call("write_past_output", u32(SLOT_BYTES)) == b"\xab" * SLOT_BYTES
        assert all_slots_work(serve(slots=2))

    def test_no_lane_is_revived_or_refused(self, serve: Serve) -> None:
        served = serve()
        served.calls._install([], served.calls.functions)
        with pytest.raises(ClosedError, match="no lane"):
            served.calls.call("echo")

    def test_a_lane_that_was_revived_is_gone_at_once(self, serve: Serve) -> None:
        """Another thread may fail what one has just revived, before that one looks at it."""
        served = serve()
        revived: list[int] = []

        class Fails(Lanes):
            def _revive(self) -> None:
                revived.append(1)
                if len(revived) == 3:
                    self._install([served.lane], served.calls.functions)

        calls = Fails()
        calls._install([], served.calls.functions)
        assert calls.call("echo", b"x") == b"x"
        assert len(revived) == 3
        calls._install([], ())


class HostileClient:
    """Raw requests of a client that keeps to no rule: the worker answers, and lives."""

    @pytest.mark.parametrize("slots", [1, 3])
    def test_requests(self, serve: Serve, slots: int) -> None:
        served = serve(slots=slots, slot_bytes=SLOT_BYTES, hot_timeout_ms=-1)
        functions = len(served.calls.functions)
        echo = served.calls.functions.index("echo")
        inline = wire.FLAG_INLINE
        invalid, unknown = Status.REQUEST_INVALID, Status.FUNCTION_UNKNOWN
        cases = [
            (wire.imm(slots, echo), 8, invalid, slots),
            (wire.imm(wire.SLOTS_MAX - 1, echo), 8, invalid, wire.SLOTS_MAX - 1),
            (wire.imm(slots, echo, inline), 8, invalid, slots),
            (wire.imm(0, echo), SLOT_BYTES + 1, invalid, SLOT_BYTES + 1),
            (wire.imm(0, echo), 2**32 - 1, invalid, 2**32 - 1),
            (wire.imm(0, echo, inline), wire.INLINE_BYTES_MAX + 1, invalid, 105),
            (wire.imm(0, echo, inline), 2**32 - 1, invalid, 2**32 - 1),
            (wire.imm(0, functions), 8, unknown, functions),
            (wire.imm(0, wire.FUNCTIONS_MAX - 1, inline), 8, unknown, wire.FUNCTIONS_MAX - 1),
            (0xFFFFFFFF, 0xFFFFFFFF, invalid, wire.SLOTS_MAX - 1),
        ]
        index = 0
        for imm, size, status, detail in cases:
            slot, answered, told = served.request(index, imm, size)
            assert (answered, told) == (status, detail), hex(imm)
            assert slot == wire.imm_fields(imm)[0]
            for allowed in (SLOT_BYTES, 0):  # what is allowed works as before
                index += 1
                good = wire.imm(slots - 1, echo)
                assert served.request(index, good, allowed) == (slots - 1, Status.OK, 0)
            index += 1
        assert served.account(wire.ACCOUNT_FAILED) == len(cases)
        assert served.account(wire.ACCOUNT_CALLS) == 3 * len(cases)

    def test_noise(self, serve: Serve, seed: int) -> None:
        """Whatever stands in a request, `echo` of no more than a slot comes back or a refusal."""
        served = serve(slots=5, hot_timeout_ms=-1)
        noise = random.Random(seed)
        echo = served.calls.functions.index("echo")
        harmless = {echo, served.calls.functions.index("empty_output")}
        for index in range(2000):
            slot, flags, size = (noise.getrandbits(bits) for bits in (12, 4, 32))
            if noise.random() < 0.5:
                slot, size = slot % 6, size % (served.slot_bytes + 2)
            low = noise.choice([*harmless, len(served.calls.functions) + noise.getrandbits(9)])
            answered = served.request(index, wire.imm(slot, low, flags), size)
            limit = wire.INLINE_BYTES_MAX if flags & wire.FLAG_INLINE else served.slot_bytes
            if slot >= served.slots or size > limit:
                expected = Status.REQUEST_INVALID
            elif low not in harmless:
                expected = Status.FUNCTION_UNKNOWN
            else:
                expected = Status.OK
            assert answered[:2] == (slot, expected)


class HostileWorker:
    """Raw answers of a worker that a function has taken over: the client believes none."""

    @pytest.mark.parametrize(
        ("imm", "size"),
        [
            (wire.imm(3, Status.OK), 8),  # no such slot
            (wire.imm(wire.SLOTS_MAX - 1, Status.OK), 8),
            (wire.imm(2, Status.OK), 8),  # not in flight
            (wire.imm(0, Status.OK), SLOT_BYTES + 1),
            (wire.imm(0, Status.OK), 2**32 - 1),
            (wire.imm(0, Status.OK, wire.FLAG_INLINE), wire.INLINE_BYTES_MAX + 1),
            (wire.imm(0, Status.FUNCTION_FAILED), 2**32 - 1),
            (0xFFFFFFFF, 0xFFFFFFFF),
        ],
    )
    def test_answers(self, serve: Serve, imm: int, size: int) -> None:
        served = serve(library=None, slots=3, slot_bytes=SLOT_BYTES)
        futures = [served.calls.submit("echo", b"x") for _ in range(2)]
        served.respond(0, imm, size)
        for future in futures:
            with pytest.raises(ProtocolError, match="never asked for"):
                future.result()
        for _ in range(3):
            with pytest.raises(ProtocolError):
                served.calls.call("echo")

    def test_two_answers_to_one_call(self, serve: Serve) -> None:
        served = serve(library=None, slots=3)
        first, second = (served.calls.submit("echo", b"x") for _ in range(2))
        slot = self.slot_of(served, 0)
        served.respond(0, wire.imm(slot, Status.OK, wire.FLAG_INLINE), 8)
        assert first.result() == bytes(8)
        served.respond(1, wire.imm(slot, Status.OK, wire.FLAG_INLINE), 8)
        with pytest.raises(ProtocolError):
            second.result()

    def test_an_answer_to_nobody(self, serve: Serve) -> None:
        """It is not looked at while nothing is asked, and the real one takes its place."""
        served = serve(library=None, slots=3)
        served.respond(5, wire.imm(1, Status.OK), 8)
        served.lane.poll()
        future = served.calls.submit("echo", b"x")
        assert not future.done()
        slot = self.slot_of(served, 0)
        served.respond(0, wire.imm(slot, Status.OK), SLOT_BYTES)
        assert future.result() == bytes(SLOT_BYTES)

    @pytest.mark.parametrize("status", [Status.REQUEST_INVALID, Status.FUNCTION_UNKNOWN, 5, 65535])
    def test_a_refusal_fails_that_call_alone(self, serve: Serve, status: int) -> None:
        served = serve(library=None, slots=3)
        first, second = (served.calls.submit("echo", b"x") for _ in range(2))
        served.respond(0, wire.imm(self.slot_of(served, 0), status, wire.FLAG_INLINE), 0, 77)
        served.respond(1, wire.imm(self.slot_of(served, 1), Status.OK, wire.FLAG_INLINE), 3)
        with pytest.raises(ProtocolError, match=f"status {status}, detail 77"):
            first.result()
        assert second.result() == bytes(3)

    def slot_of(self, served: Served, index: int) -> int:
        (imm,) = struct.unpack_from("<I", served.memory, served.request_at(index) + wire.CELL_IMM)
        return wire.imm_fields(imm)[0]


class Accounting:
    """What the bill is made of."""

    def test_calls_are_counted_before_they_are_answered(self, serve: Serve) -> None:
        served = serve(lanes=2)
        for index in range(1, 200):
            served.calls.call("echo", b"x")
            if index % 5 == 0:
                with pytest.raises(RfaasError):
                    served.calls.call("return_status", u32(1))
            calls, failed = (
                sum(served.account(field, lane) for lane in (0, 1))
                for field in (wire.ACCOUNT_CALLS, wire.ACCOUNT_FAILED)
            )
            assert (calls, failed) == (index + index // 5, index // 5)

    def test_executing_is_what_a_function_took(self, serve: Serve) -> None:
        before = time.monotonic_ns()
        served = serve()
        served.calls.call("sleep_ms", u32(50))
        eventually(lambda: served.account(wire.ACCOUNT_EXECUTING_NS) > 0)
        executing = served.account(wire.ACCOUNT_EXECUTING_NS)
        assert 0.049 * NS <= executing <= time.monotonic_ns() - before

    @pytest.mark.parametrize("hot_timeout_ms", [-1, 0, 1])
    def test_no_time_is_counted_twice(self, serve: Serve, hot_timeout_ms: int) -> None:
        before = time.monotonic_ns()
        served = serve(hot_timeout_ms=hot_timeout_ms)
        for index in range(20):
            served.calls.call("sleep_ms", u32(index % 3))
            if hot_timeout_ms >= 0:
                eventually(lambda: served.header(wire.HEADER_WORKER_SLEEPS) == 1)
        executing, polling, sleeping = (
            served.account(field)
            for field in (
                wire.ACCOUNT_EXECUTING_NS,
                wire.ACCOUNT_POLLING_NS,
                wire.ACCOUNT_SLEEPING_NS,
            )
        )
        assert executing >= 0.018 * NS
        assert polling > 0
        assert (sleeping > 0) == (hot_timeout_ms >= 0)
        assert executing + polling + sleeping <= time.monotonic_ns() - before

    def test_a_running_call_says_since_when(self, serve: Serve, gate: Gate) -> None:
        before = time.monotonic_ns()
        served = serve()
        assert served.account(wire.ACCOUNT_BUSY_SINCE_NS) == 0
        future = served.calls.submit("hold", gate.data)
        gate.entered()
        assert before < served.account(wire.ACCOUNT_BUSY_SINCE_NS) < time.monotonic_ns()
        gate.let()
        assert future.result() == gate.data
        eventually(lambda: served.account(wire.ACCOUNT_BUSY_SINCE_NS) == 0)
