"""The contract that every transport keeps: calls, results, buffers, waiting.

A transport's own test file inherits these classes and gives the fixture
`carrier`; the rest is in conftest.py.  What must go wrong well is in
contract_faults.py, and many threads at once in contract_threads.py.
"""

from __future__ import annotations

import array
import gc
import random
import struct
from collections.abc import Iterator
from functools import partial

import pytest

from rfaas.errors import (
    CapacityError,
    FunctionFailedError,
    FunctionNotFoundError,
    OutputTooLargeError,
    PayloadTooLargeError,
    UsageError,
)
from rfaas.native._calls import Call
from rfaas.proto import wire
from tests.transport.served import Gate, Serve, Served, eventually

SLOT_BYTES = 2 * wire.PAGE_BYTES
EDGES = (0, 1, 47, 48, 49, 63, 64, 65, 103, 104, 105, 4095, 4096, 4097, SLOT_BYTES - 1, SLOT_BYTES)
WRAP = 2**32 - 100


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes that tell where they belong."""
    return random.Random(size << 32 | seed).randbytes(size)


def all_slots_work(served: Served) -> bool:
    """Whether none is lost: all but one can be lent out, and the last serves calls."""
    lent = [served.calls.buffer(1) for _ in range(served.slots - 1)]
    return bytes(served.calls.call("echo", b"still here")) == b"still here" and bool(lent)


class Payloads:
    """What goes over comes back."""

    @pytest.mark.parametrize("size", EDGES)
    def test_echo(self, serve: Serve, size: int) -> None:
        calls = serve(slot_bytes=SLOT_BYTES).calls
        for seed in range(3):
            data = pattern(size, seed)
            assert calls.call("echo", data) == data
            assert calls.submit("echo", bytearray(data)).result() == data
            assert list(calls.map("echo", [data, data])) == [data, data]
            lent = calls.buffer(size)
            lent[:] = data
            assert calls.call("echo", lent) == data

    def test_sizes_one_after_another(self, serve: Serve) -> None:
        """Nothing of a longer payload is left in a shorter one, however they follow."""
        calls = serve(slots=2).calls
        for size in [*EDGES, *reversed(EDGES), *EDGES[::3]]:
            assert calls.call("echo", pattern(size)) == pattern(size)

    def test_one_byte_past_the_slot(self, serve: Serve) -> None:
        served = serve(slots=2, slot_bytes=SLOT_BYTES)
        for _ in range(3):
            with pytest.raises(PayloadTooLargeError, match=rf"{SLOT_BYTES + 1} .*{SLOT_BYTES}"):
                served.calls.call("echo", bytes(SLOT_BYTES + 1))
            with pytest.raises(PayloadTooLargeError):
                served.calls.buffer(SLOT_BYTES + 1)
        with pytest.raises(PayloadTooLargeError):
            served.calls.buffer(-1)
        assert all_slots_work(served)

    def test_every_byte_value(self, serve: Serve) -> None:
        calls = serve().calls
        every = bytes(range(256))
        assert calls.call("echo", every) == every
        assert list(calls.map("echo", ())) == []
        assert list(calls.map("echo", (every[i : i + 1] for i in range(256)))) == [
            bytes([value]) for value in range(256)
        ]

    def test_big_payload_is_copied_without_the_gil(self, serve: Serve) -> None:
        size = 1 << 20
        calls = serve(slots=2, slot_bytes=size).calls
        assert calls.call("echo", pattern(size)) == pattern(size)

    def test_any_buffer_goes_in(self, serve: Serve) -> None:
        calls = serve().calls
        numbers = array.array("d", [0.5, 1.5, 2.5] * 50)
        for data in (numbers, memoryview(numbers), bytearray(numbers.tobytes())):
            assert calls.call("double_f64", data).cast("d").tolist() == [1.0, 3.0, 5.0] * 50
        with pytest.raises(BufferError):
            calls.call("echo", memoryview(b"0123456789")[::2])
        with pytest.raises(TypeError):
            calls.call("echo", "text")  # type: ignore[arg-type]

    def test_payloads_lie_aligned(self, serve: Serve) -> None:
        calls = serve().calls
        for count in (1, 6, 13, 14, 1000):  # sum_f64 fails where its arrays are not
            data = array.array("d", range(count))
            (total,) = struct.unpack("<d", calls.call("sum_f64", data))
            assert total == sum(data)

    def test_seventy_thousand_calls(self, serve: Serve) -> None:
        """Ids of 16 bits would wrap."""
        served = serve(hot_timeout_ms=50)
        for index in range(35_000):
            assert served.calls.call("echo", index.to_bytes(4, "little")) == u32(index)
        numbers = (u32(index) for index in range(35_000))
        for index, result in enumerate(served.calls.map("echo", numbers)):
            assert result == u32(index)
        assert served.account(wire.ACCOUNT_CALLS) == 70_000

    @pytest.mark.parametrize("slots", [1, 3, 16])
    def test_ids_wrap(self, serve: Serve, slots: int) -> None:
        served = serve(slots=slots, first=WRAP)
        for index in range(150):
            assert served.calls.call("echo", u32(index)) == u32(index)
        data = [pattern(size) for size in range(0, 450, 3)]
        assert list(served.calls.map("echo", data)) == data
        assert served.account(wire.ACCOUNT_CALLS) == 300


class Functions:
    """What a function reports reaches its caller."""

    def test_unknown_name(self, serve: Serve) -> None:
        calls = serve().calls
        with pytest.raises(FunctionNotFoundError, match="did you mean echo"):
            calls.call("ehco")
        with pytest.raises(FunctionNotFoundError):
            calls.submit("ehco")
        with pytest.raises(FunctionNotFoundError):
            list(calls.map("ehco", [b""]))

    def test_status_and_text(self, serve: Serve) -> None:
        calls = serve().calls
        for text in ("short", "x" * 100, "y" * 300, "ümlaut"):
            with pytest.raises(FunctionFailedError, match=f"fail_with_text.*7: {text}") as failed:
                calls.call("fail_with_text", text.encode())
            assert failed.value.status == 7
        with pytest.raises(FunctionFailedError, match="no text"):
            calls.call("fail_with_text")

    @pytest.mark.parametrize("status", [1, 7, 2**31 - 1, -1, -(2**31)])
    def test_any_status(self, serve: Serve, status: int) -> None:
        calls = serve().calls
        with pytest.raises(FunctionFailedError, match=f"status {status}:") as failed:
            calls.call("return_status", struct.pack("<i", status))
        assert failed.value.status == status

    def test_text_of_any_bytes_and_size(self, serve: Serve) -> None:
        calls = serve(slots=1, slot_bytes=SLOT_BYTES).calls
        assert len(calls.call("fill", u32(SLOT_BYTES))) == SLOT_BYTES
        for size in (1, 104, 105, 4096, SLOT_BYTES):
            with pytest.raises(FunctionFailedError) as failed:
                calls.call("set_text_size", u32(size))
            assert len(failed.value.text) < 4096 + 100  # what the slot holds, cut
        for size in (0, SLOT_BYTES + 1, 2**32 - 1):
            with pytest.raises(FunctionFailedError, match="no text"):
                calls.call("set_text_size", u32(size))
        with pytest.raises(FunctionFailedError, match="\N{REPLACEMENT CHARACTER}"):
            calls.call("fail_with_text", b"\xff\xfe")

    @pytest.mark.parametrize("name", ["report_too_much", "set_result_size"])
    def test_output_too_large(self, serve: Serve, name: str) -> None:
        served = serve(slot_bytes=SLOT_BYTES)
        assert len(served.calls.call(name, u32(SLOT_BYTES))) == SLOT_BYTES
        for size in (SLOT_BYTES + 1, 2**31, 2**32 - 1):
            with pytest.raises(OutputTooLargeError, match=f"{size} bytes.*{SLOT_BYTES}") as failed:
                served.calls.call(name, u32(size))
            assert str(size) in failed.value.hint
        assert all_slots_work(served)

    def test_a_scribbled_call_harms_nobody(self, serve: Serve) -> None:
        served = serve()
        with pytest.raises(OutputTooLargeError):
            served.calls.call("scribble_call")
        assert all_slots_work(served)

    def test_capacity_is_told(self, serve: Serve) -> None:
        assert serve(slot_bytes=SLOT_BYTES).calls.call("capacity_of") == u32(SLOT_BYTES)

    def test_empty_output(self, serve: Serve) -> None:
        assert serve().calls.call("empty_output", pattern(1000)) == b""

    def test_failures_do_not_mix_with_results(self, serve: Serve) -> None:
        calls = serve(slots=4).calls
        futures = [
            calls.submit("fail_with_text" if index % 3 == 0 else "echo", b"%d" % index)
            for index in range(100)
        ]
        for index, future in enumerate(futures):
            if index % 3 == 0:
                assert f"7: {index}" in str(future.exception())
            else:
                assert future.result() == b"%d" % index


class InFlight:
    """Several calls at once."""

    def test_collected_in_any_order(self, serve: Serve, seed: int) -> None:
        calls = serve(slots=16).calls
        order = random.Random(seed)
        for _ in range(50):
            data = [pattern(order.choice(EDGES), index) for index in range(order.randint(1, 16))]
            futures = list(enumerate([calls.submit("echo", one) for one in data]))
            order.shuffle(futures)
            for index, future in futures:
                assert future.result() == data[index]

    def test_over_several_lanes(self, serve: Serve, gate: Gate) -> None:
        served = serve(lanes=2, slots=4)
        held = served.calls.submit("hold", gate.data)
        gate.entered()
        data = [pattern(size) for size in range(0, 2000, 100)]
        for one in data:
            assert served.calls.call("echo", one) == one  # on the other lane
        assert not held.done()
        gate.let()
        assert held.result() == gate.data
        assert list(served.calls.map("echo", data)) == data
        assert all(served.account(wire.ACCOUNT_CALLS, lane) for lane in (0, 1))

    def test_submit_waits_for_a_slot_and_results_move_out(self, serve: Serve) -> None:
        calls = serve(slots=2).calls
        data = [pattern(size) for size in range(0, 6000, 60)]
        futures = [calls.submit("echo", one) for one in data]
        assert [bytes(future.result()) for future in futures] == data

    def test_results_stay_while_they_are_held(self, serve: Serve) -> None:
        """Some lie in slots, and past a limit they are copied: nobody can tell."""
        served = serve(slots=8)
        data = [pattern(3000, seed) for seed in range(40)]
        results = [served.calls.call("echo", one) for one in data]
        assert list(served.calls.map("echo", data)) == data
        assert results == data
        del results
        assert all_slots_work(served)

    def test_a_future_answers_again_and_again(self, serve: Serve, gate: Gate) -> None:
        calls = serve().calls
        future = calls.submit("hold", gate.data)
        gate.entered()
        assert future.running()
        assert not future.done()
        assert not future.cancel()
        assert not future.cancelled()
        gate.let()
        eventually(future.done)
        assert not future.running()
        assert future.result() == future.result() == gate.data
        assert future.exception() is None
        assert future.function == "hold"

    def test_abandoned_calls_give_their_slots_back(self, serve: Serve, gate: Gate) -> None:
        served = serve(slots=4)
        for _ in range(20):
            futures = [served.calls.submit("hold", gate.data) for _ in range(4)]
            gate.entered()
            del futures  # in flight
            gate.let(4)
            for _ in range(3):
                gate.entered()
            served.calls.submit("echo", pattern(500))  # dropped at once, or when it is done
        assert all_slots_work(served)

    def test_callbacks(self, serve: Serve, gate: Gate) -> None:
        calls = serve().calls
        future = calls.submit("hold", gate.data)
        seen: list[tuple[int, Call]] = []
        gate.entered()
        for number in range(3):
            future.add_done_callback(
                partial(lambda number, call: seen.append((number, call)), number)
            )
        assert calls.watched == [future]
        assert seen == []
        gate.let()
        assert future.result() == gate.data
        assert seen == [(0, future), (1, future), (2, future)]
        future.add_done_callback(lambda call: seen.append((3, call)))
        assert seen[3:] == [(3, future)]
        calls.watched.clear()

    def test_map_ends_early(self, serve: Serve) -> None:
        served = serve(slots=4)
        results = served.calls.map("echo", (pattern(200, seed) for seed in range(100)))
        assert [next(results) for _ in range(3)] == [pattern(200, seed) for seed in range(3)]
        results.close()
        assert all_slots_work(served)

    def test_map_input_fails(self, serve: Serve) -> None:
        def inputs() -> Iterator[bytes]:
            yield from (b"first", b"second")
            raise KeyError("of the input")

        served = serve(slots=4)
        for _ in range(10):
            with pytest.raises(KeyError, match="of the input"):
                list(served.calls.map("echo", inputs()))
            with pytest.raises(PayloadTooLargeError):
                list(served.calls.map("echo", [b"", bytes(served.slot_bytes + 1)]))
            with pytest.raises(FunctionFailedError):
                list(served.calls.map("fail_with_text", [b"one", b"two", b"three"]))
        assert all_slots_work(served)

    def test_map_from_buffers_that_go_away(self, serve: Serve) -> None:
        """A buffer dropped while its call is in flight is freed with the call, not before."""
        served = serve(slots=4)

        def inputs() -> Iterator[memoryview]:
            for seed in range(50):
                lent = served.calls.buffer(500)
                lent[:] = pattern(500, seed)
                yield lent

        results = list(served.calls.map("echo", inputs()))
        assert results == [pattern(500, seed) for seed in range(50)]
        assert all_slots_work(served)


class Buffers:
    """Memory of slots, lent to the user."""

    def test_used_in_place(self, serve: Serve, gate: Gate) -> None:
        """What is written into it after `submit` reaches a function that begins later."""
        calls = serve(slots=4).calls
        lent = calls.buffer(1000)
        lent[:] = pattern(1000)
        for data in (lent, lent[:500], lent.cast("I"), memoryview(lent)[:105].toreadonly()):
            held = calls.submit("hold", gate.data)
            gate.entered()
            future = calls.submit("echo", data)
            lent[0] = lent[0] ^ 0xFF
            gate.let()
            assert future.result() == lent[: data.nbytes]
            assert held.result() == gate.data

    def test_copied_where_it_is_not_the_start(self, serve: Serve, gate: Gate) -> None:
        calls = serve(slots=4).calls
        lent = calls.buffer(1000)
        lent[:] = before = pattern(1000)
        for data in (lent[8:], lent[:104], bytearray(lent)):
            held = calls.submit("hold", gate.data)
            gate.entered()
            future = calls.submit("echo", data)
            expected = bytes(data)
            lent[:] = bytes(1000)
            gate.let()
            assert future.result() == expected
            assert held.result() == gate.data
            lent[:] = before

    def test_in_flight_it_is_refused(self, serve: Serve, gate: Gate) -> None:
        served = serve(slots=4)
        lent = served.calls.buffer(1000)
        lent[:8] = gate.data
        future = served.calls.submit("hold", lent)
        gate.entered()
        for refused in (lent, lent[:500]):
            with pytest.raises(UsageError, match="in use"):
                served.calls.submit("hold", refused)
        gate.let()
        assert future.result()[:8] == gate.data
        gate.let()
        assert served.calls.call("hold", lent)[:8] == gate.data
        gate.entered()
        del future, refused
        lent.release()
        assert all_slots_work(served)

    def test_free_again_when_its_call_was_abandoned(self, serve: Serve, gate: Gate) -> None:
        served = serve(slots=2)
        lent = served.calls.buffer(1000)
        lent[:8] = gate.data
        served.calls.submit("hold", lent)
        gate.entered()
        gate.let(2)
        eventually(lambda: served.calls.submit("echo", b"").done() and not served.lane.in_flight)
        assert served.calls.call("hold", lent)[:8] == gate.data
        gate.entered()

    def test_dropped_in_flight(self, serve: Serve, gate: Gate) -> None:
        served = serve(slots=3)
        for _ in range(5):
            lent = served.calls.buffer(1000)
            lent[:8] = gate.data
            future = served.calls.submit("hold", lent)
            gate.entered()
            lent.release()
            del lent
            gate.let()
            assert future.result()[:8] == gate.data
            del future
        assert all_slots_work(served)

    def test_result_outlives_the_buffer(self, serve: Serve) -> None:
        served = serve(slots=4)
        lent = served.calls.buffer(1000)
        lent[:] = pattern(1000)
        result = served.calls.call("echo", lent)
        del lent
        assert list(served.calls.map("fill", [u32(4000)] * 20)) == [b"\xa0" * 4000] * 20
        assert result == pattern(1000)
        del result
        assert all_slots_work(served)

    def test_all_slots_taken(self, serve: Serve) -> None:
        served = serve(slots=4)
        lent = [served.calls.buffer(10) for _ in range(3)]
        with pytest.raises(CapacityError, match="4"):
            served.calls.buffer(10)
        assert list(served.calls.map("echo", [b"a", b"b", b"c"])) == [b"a", b"b", b"c"]
        results = served.calls.map("echo", iter([b"x", b"y", b"z"]))
        assert next(results) == b"x"
        assert served.calls.call("echo", b"between two of a map") == b"between two of a map"
        assert list(results) == [b"y", b"z"]
        del lent
        assert all_slots_work(served)

    def test_one_slot_lends_nothing(self, serve: Serve) -> None:
        calls = serve(slots=1).calls
        with pytest.raises(CapacityError):
            calls.buffer(10)
        results = [calls.call("echo", pattern(4000, seed)) for seed in range(5)]
        assert results == [pattern(4000, seed) for seed in range(5)]

    def test_in_a_cycle_it_is_freed_with_it(self, serve: Serve) -> None:
        served = serve(slots=4)
        for _ in range(20):
            cycle: list[object] = [served.calls.buffer(10), served.calls.submit("echo", b"x")]
            cycle.append(cycle)
            del cycle
            gc.collect()
        assert all_slots_work(served)
