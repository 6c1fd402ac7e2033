"""What is measured, and how; each function returns plain numbers, ready for JSON.

Native loops (`native/_bench`) drive a lane, so that the lane and not Python is
measured; Python's own `lease.call` is timed beside them.  What is compared is
interleaved in blocks of one run, so that noise hits both alike: the bare
exchange runs between the very same two threads, pinned to two cores.
"""

from __future__ import annotations

import importlib.util
import os
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rfaas.client import Lease, Session
from rfaas.errors import InternalError
from rfaas.native import _bench
from rfaas.native._window import Lane
from rfaas.proto import wire

Stats = dict[str, float]
BLOCK = 200  # round trips between two turns
COLD_WARMUP = 2
RAW_BYTES = 2 * wire.PAGE_BYTES  # what the bare exchange needs beside the payload (bench/peer.h)
IDLE_NS = 200_000  # a worker that sleeps so long is really asleep


def peer_library() -> str | bytes:
    """The library that the measured worker runs (bench/peer.c): its file, or its bytes in a zip."""
    found = importlib.util.find_spec("rfaas.bench.peer")
    if found is None or found.origin is None:
        raise InternalError("the benchmark's library was not built")
    if os.path.exists(found.origin):
        return found.origin
    data: bytes = found.loader.get_data(found.origin)  # type: ignore[union-attr]
    return data


def stats(samples: Iterable[float]) -> Stats:
    """Minimum, median and 99th percentile."""
    ranked = sorted(samples)
    last = len(ranked) - 1
    return {
        "min": ranked[0],
        "median": ranked[len(ranked) // 2],
        "p99": ranked[min(last, len(ranked) * 99 // 100)],
    }


def hot(session: Session, size: int, calls: int) -> dict[str, object]:
    """A call of `size` bytes against the bare exchange of the same bytes, both spinning."""
    raw, native, python = array("Q"), array("Q"), array("Q")
    data = bytearray(os.urandom(size))
    if session.config.lane.transport == "verbs":
        return _hot_verbs(session, data, calls)
    mode = _bench.INLINE if size <= wire.INLINE_BYTES_MAX else _bench.BESIDE
    with _lease(session, size, hot_timeout_ms=-1) as lease, _pinned_apart(lease):
        lane, echo, pong = _parts(lease)
        frozen = bytes(data)
        for _ in range(max(1, calls // BLOCK)):
            raw.extend(_bench.measure(lane, pong, data, BLOCK, mode=mode))
            native.extend(_bench.measure(lane, echo, data, BLOCK))
            python.extend(_time_calls(lease.call, frozen, BLOCK))
        report = _head(lease, "hot", size, len(native))
    raw_stats, hot_stats, python_stats = stats(raw), stats(native), stats(python)
    return report | {
        "raw_rtt_ns": raw_stats,
        "hot_rtt_ns": hot_stats,
        "python_rtt_ns": python_stats,
        "overhead_ns": hot_stats["median"] - raw_stats["median"],
        "python_overhead_ns": python_stats["median"] - raw_stats["median"],
    }


def _hot_verbs(session: Session, data: bytearray, calls: int) -> dict[str, object]:
    """The same over RDMA; ratios count, for a NIC in software has the times of software."""
    from rfaas.bench import perftest, verbs

    size = len(data)
    with _lease(session, size, hot_timeout_ms=verbs.HOT_TIMEOUT_MS) as lease, _pinned_apart(lease):
        lane, echo, _ = _parts(lease)
        bare, native = verbs.hot(lease, lane, echo, data, calls)
        frozen = bytes(data)
        _time_calls(lease.call, frozen, verbs.WARM_UP)
        python = _time_calls(lease.call, frozen, len(native) // 5)
        report = _head(lease, "hot", size, len(native)) | {"mode": verbs.mode(lease)}
        outside = perftest.latency_ns(lease, size)
    raw_stats, hot_stats, python_stats = stats(bare), stats(native), stats(python)
    return report | {
        "raw_rtt_ns": raw_stats,
        "hot_rtt_ns": hot_stats,
        "python_rtt_ns": python_stats,
        "overhead_ns": hot_stats["median"] - raw_stats["median"],
        # Of neighbouring blocks: what else the machine does comes and goes between them.
        "ratio": round(verbs.ratio(bare, native), 3),
        "ratio_of_minima": round(hot_stats["min"] / raw_stats["min"], 3),
        **({"ib_write_lat_ns": outside} if outside else {}),
    }


def warm(session: Session, size: int, calls: int) -> dict[str, object]:
    """A call to a worker that sleeps, against waking a bare peer in the same way."""
    raw, native, python = array("Q"), array("Q"), array("Q")
    data = bytearray(os.urandom(size))
    if session.config.lane.transport == "verbs":
        return _warm_verbs(session, data, calls)
    block = min(BLOCK, max(1, calls))
    with _lease(session, size, hot_timeout_ms=0) as lease, _pinned_apart(lease):
        lane, echo, pong = _parts(lease)
        frozen = bytes(data)
        for _ in range(max(1, calls // block)):
            raw.extend(_bench.measure(lane, pong, data, block, mode=_bench.ASLEEP, idle_ns=IDLE_NS))
            native.extend(_bench.measure(lane, echo, data, block, idle_ns=IDLE_NS))
            python.extend(_time_calls(lease.call, frozen, block, IDLE_NS))
        report = _head(lease, "warm", size, len(native))
    return report | _warm(raw, native, python)


def _warm_verbs(session: Session, data: bytearray, calls: int) -> dict[str, object]:
    from rfaas.bench import verbs, verbs_warm

    size = len(data)
    with _lease(session, size, hot_timeout_ms=verbs.HOT_TIMEOUT_MS) as lease, _pinned_apart(lease):
        lane, echo, _ = _parts(lease)
        raw, native, python = verbs_warm.warm(lease, lane, echo, data, calls)
        report = _head(lease, "warm", size, len(native))
    return report | _warm(raw, native, python)


def _warm(raw: array[int], native: array[int], python: array[int]) -> dict[str, object]:
    raw_stats, warm_stats = stats(raw), stats(native)
    return {
        "raw_rtt_ns": raw_stats,
        "warm_rtt_ns": warm_stats,
        "python_rtt_ns": stats(python),
        "overhead_ns": warm_stats["median"] - raw_stats["median"],
        "ratio": round(warm_stats["median"] / raw_stats["median"], 3),
    }


def cold(session: Session, rounds: int, pause_s: float = 0.0) -> dict[str, object]:
    """From asking a running executor for a lease to the first result, and each step of it.

    Each is asked for `pause_s` after the one before was given back.  With some of it, what that
    left to do on the node is not in the way, but nothing is in the processor's caches either.
    """
    steps: dict[str, list[float]] = {}
    transport = isolation = ""
    for turn in range(rounds + COLD_WARMUP):
        time.sleep(pause_s)
        before = time.monotonic_ns()
        with session.lease(cores=1, library=peer_library()) as lease:
            leased = time.monotonic_ns()
            lease.call("echo", b"x")
            after = time.monotonic_ns()
            transport, isolation = lease.transport, lease.isolation
            if turn < COLD_WARMUP:  # the first sends the library; later ones find it there
                continue
            taken = lease.steps_ns | {"first_call": after - leased, "total": after - before}
            for step, ns in taken.items():
                steps.setdefault(step, []).append(ns / 1e6)
    return {
        "benchmark": "cold",
        "transport": transport,
        "isolation": isolation,
        "rounds": rounds,
        "pause_ms": round(pause_s * 1e3),
        "total_ms": stats(steps.pop("total")),
        "steps_ms": {step: stats(values) for step, values in steps.items()},
    }


def throughput(session: Session, size: int, calls: int, inflight: int) -> dict[str, object]:
    """Calls a second on one lane with up to `inflight` at once."""
    data = os.urandom(size)
    rates: dict[str, list[float]] = {"native": [], "python": [], "python_submit": []}
    with _lease(session, size, hot_timeout_ms=-1, slots=inflight + 1) as lease:
        with _pinned_apart(lease):
            lane, echo, _ = _parts(lease)
            some = max(1, calls // 5)
            for _ in range(5):
                elapsed = _bench.pipeline(lane, echo, data, inflight, calls)
                rates["native"].append(calls * 1e9 / elapsed)
                rates["python"].append(_rate(some, lambda n: _drain(lease, data, n)))
                rates["python_submit"].append(_rate(some, lambda n: _submit(lease, data, n)))
        report = _head(lease, "throughput", size, calls)
    ranked = {name: stats(values)["median"] for name, values in rates.items()}
    spread = {name: [min(values), max(values)] for name, values in rates.items()}
    return report | {"inflight": inflight, "calls_per_s": ranked, "calls_per_s_spread": spread}


def payload(session: Session, size_max: int = 16 << 20) -> dict[str, object]:
    """Round trips from 1 B to `size_max`: calls against the bare exchange of the same bytes.

    In place: the input lies in a buffer of the lease, the result is used where it is.
    Copied: from ordinary memory and back to it, in Python from `bytes` to new `bytes`.
    """
    if session.config.lane.transport == "verbs":
        return _payload_verbs(session)
    sizes = [1, 64, 1 << 10, 4 << 10, 64 << 10, 1 << 20, 4 << 20, 16 << 20]
    with _lease(session, size_max, hot_timeout_ms=-1) as lease, _pinned_apart(lease):
        rows = [_payload_row(lease, size) for size in sizes if size <= size_max]
        report = _head(lease, "payload", size_max, 0)
    return report | {"rows": rows}


def _payload_verbs(session: Session) -> dict[str, object]:
    """Bytes a second into a worker by calls in flight at once, and by bare writes."""
    from rfaas.bench import verbs

    largest = 1 << 20
    with _lease(session, largest, hot_timeout_ms=verbs.HOT_TIMEOUT_MS) as lease:
        with _pinned_apart(lease):
            rows = [verbs.flow(lease, size) for size in (4 << 10, 64 << 10, largest)]
        report = _head(lease, "payload", largest, 0) | {"mode": verbs.mode(lease)}
    return report | {"rows": rows}


def _payload_row(lease: Lease, size: int) -> dict[str, object]:
    lane, echo, pong = _parts(lease)
    data = bytearray(os.urandom(size))
    frozen = bytes(data)
    rounds = max(6, min(40, (64 << 20) // size))
    block = max(2, min(BLOCK, (8 << 20) // size))
    taken: dict[str, array[int]] = {
        name: array("Q")
        for name in ("raw_in_place", "in_place", "python_in_place", "raw_copied", "python_copied")
    }

    def copied(name: str, given: bytes | memoryview) -> bytes:
        return bytes(lease.call(name, given))

    with lease.buffer(size) as buffer:
        buffer[:] = frozen
        for _ in range(rounds):
            beside = _bench.BESIDE
            taken["raw_in_place"].extend(
                _bench.measure(lane, pong, buffer, block, mode=beside, in_place=True)
            )
            taken["in_place"].extend(_bench.measure(lane, echo, buffer, block, in_place=True))
            taken["python_in_place"].extend(_time_calls(lease.call, buffer, block))
            taken["raw_copied"].extend(
                _bench.measure(lane, pong, data, block, mode=beside, copy_out=True)
            )
            taken["python_copied"].extend(_time_calls(copied, frozen, block))
    return {"size_bytes": size} | {f"{name}_ns": stats(ns) for name, ns in taken.items()}


def _lease(session: Session, size: int, *, hot_timeout_ms: int, slots: int = 16) -> Lease:
    return session.lease(
        cores=1,
        library=peer_library(),
        slots=slots,
        slot_bytes=wire.slot_bytes_for(size + RAW_BYTES),
        hot_timeout_ms=hot_timeout_ms,
    )


def _parts(lease: Lease) -> tuple[Lane, int, int]:
    """The lease's lane and the indices of `echo` and `pong`."""
    lease.call("echo", b"")
    names = lease.functions
    return lease._lanes[0], names.index("echo"), names.index("pong")


@contextmanager
def _pinned_apart(lease: Lease) -> Iterator[None]:
    """Pin this thread to a processor that no lane of the lease has, if there is one."""
    before = os.sched_getaffinity(0)
    others = before - set(lease.cpus)
    if others:
        os.sched_setaffinity(0, {min(others)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _time_calls(
    call: Callable[[str, bytes | memoryview], object],
    data: bytes | memoryview,
    count: int,
    idle_ns: int = 0,
) -> array[int]:
    """Round trips as a Python program sees them, the clock's own 50 ns included."""
    samples = array("Q", bytes(8 * count))
    now = time.perf_counter_ns
    for index in range(count):
        if idle_ns:
            until = now() + idle_ns
            while now() < until:
                pass
        before = now()
        call("echo", data)
        samples[index] = now() - before
    return samples


def _rate(count: int, work: Callable[[int], None]) -> float:
    before = time.perf_counter_ns()
    work(count)
    return count * 1e9 / (time.perf_counter_ns() - before)


def _drain(lease: Lease, data: bytes, count: int) -> None:
    for _ in lease.map("echo", [data] * count):
        pass


def _submit(lease: Lease, data: bytes, count: int) -> None:
    for _ in range(max(1, count // 8)):
        for future in [lease.submit("echo", data) for _ in range(8)]:
            future.result()


def _head(lease: Lease, benchmark: str, size: int, calls: int) -> dict[str, object]:
    return {
        "benchmark": benchmark,
        "transport": lease.transport,
        "size_bytes": size,
        "calls": calls,
        "worker_cpus": list(lease.cpus),
    }
