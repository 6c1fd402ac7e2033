"""The contract that every transport keeps when many threads use one set of lanes."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import pytest

from rfaas.native._calls import Call
from tests.transport.contract import all_slots_work, pattern
from tests.transport.served import Gate, Serve


def processor_ns(work: Callable[[], None]) -> int:
    """Nanoseconds of processor time that three threads use which do `work` at once."""
    used_ns: list[int] = []

    def measured() -> None:
        before = time.thread_time_ns()
        work()
        used_ns.append(time.thread_time_ns() - before)

    threads = [threading.Thread(target=measured) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(used_ns) == 3
    return sum(used_ns)


def naps() -> None:
    """Half a second of sleeps as long as those of threads that watch a lane."""
    for _ in range(500):
        time.sleep(0.001)


class Threads:
    """Lanes are used by many threads."""

    @pytest.mark.parametrize(("lanes", "slots"), [(1, 1), (1, 3), (2, 16)])
    def test_no_result_is_lost_or_crossed(
        self, serve: Serve, seed: int, lanes: int, slots: int
    ) -> None:
        served = serve(lanes=lanes, slots=slots, slot_bytes=1 << 17)
        wrong: list[object] = []

        def work(thread: int) -> None:
            mix = random.Random(seed << 8 | thread)
            calls = served.calls
            try:
                for index in range(100):
                    size = mix.choice((0, 8, 104, 105, 3000, 1 << 17 if index % 10 == 0 else 8))
                    data = pattern(size, thread << 16 | index)
                    match mix.randrange(4):
                        case 0:
                            results = [calls.submit("echo", data).result()]
                        case 1:
                            results = [memoryview(one) for one in calls.map("echo", [data])]
                        case 2:
                            calls.submit("echo", data)
                            results = [calls.call("echo", data)]
                        case _:
                            results = [calls.call("echo", data)]
                    if results != [data]:
                        wrong.append((thread, index, size))
            except Exception as error:  # noqa: BLE001 - of a thread: it is told below
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        if slots > 1:
            assert all_slots_work(served)

    def test_many_wait_for_one_future(self, serve: Serve, gate: Gate) -> None:
        served = serve(slots=2)

        def collect(future: Call, results: list[bytes]) -> None:
            results.append(bytes(future.result()))

        for _ in range(10):
            future = served.calls.submit("hold", gate.data)
            gate.entered()
            results: list[bytes] = []
            threads = [threading.Thread(target=collect, args=(future, results)) for _ in range(4)]
            for thread in threads:
                thread.start()
            gate.let()
            assert list(served.calls.map("echo", [b"1", b"2", b"3"])) == [b"1", b"2", b"3"]
            for thread in threads:
                thread.join()
            assert results == [gate.data] * 4
