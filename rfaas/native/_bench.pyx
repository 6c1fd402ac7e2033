# cython: language_level=3, boundscheck=False, wraparound=False
"""The benchmark's loops over one lane (bench.h), for `rfaas.bench.measure`.

Samples are nanoseconds in an `array("Q")`.  The lane must be idle.
"""
from cpython cimport array
from libc.stdint cimport uint8_t, uint32_t, uint64_t

import array as arrays

from rfaas import errors

from rfaas.native._window cimport (
    NO_SLOT,
    WAIT_DONE,
    Lane,
    ns_to_ticks,
    ticks_calibrate,
    ticks_to_ns,
    window,
    window_free,
    window_take,
)

cdef extern from "bench.h" nogil:
    int bench_calls(window *w, uint32_t slot, uint32_t function, uint8_t *data, uint32_t size,
                    int copy_out, uint64_t idle_ticks, uint32_t count, uint64_t *samples)
    int bench_raw(window *w, uint32_t slot, uint32_t function, uint32_t mode, uint8_t *data,
                  uint32_t size, int copy_out, uint64_t idle_ticks, uint32_t count,
                  uint64_t *samples)
    uint64_t bench_pipeline(window *w, uint32_t function, const uint8_t *data, uint32_t size,
                            uint32_t inflight, uint64_t count)

INLINE, BESIDE, ASLEEP = range(3)  # the modes of peer.h

ticks_calibrate()


cdef array.array nanoseconds(array.array samples):
    cdef Py_ssize_t i
    for i in range(len(samples)):
        samples.data.as_ulonglongs[i] = ticks_to_ns(samples.data.as_ulonglongs[i])
    return samples


def measure(Lane lane, function, uint8_t[::1] data, uint32_t count, *, int mode=-1,
            bint in_place=False, bint copy_out=False, idle_ns=0):
    """Round trips of `count` calls of `function` on `data`, in nanoseconds.

    Args:
        mode: -1: calls; else the bare exchange of that mode, which `function`, the
            peer's `pong`, answers.
        in_place: `data` is memory of `Lease.buffer`: its slot is used, nothing is copied in.
        copy_out: copy results into `data`.
        idle_ns: before each, wait until the worker sleeps, and so long after.
    """
    ticks_calibrate()
    cdef array.array samples = arrays.array("Q", bytes(8 * count))
    cdef uint64_t *out = <uint64_t *>samples.data.as_ulonglongs
    cdef uint32_t index = function, size = len(data)
    cdef uint32_t slot = lane.buffer_slot(&data[0]) if in_place else window_take(&lane.w)
    cdef uint64_t idle = ns_to_ticks(idle_ns)
    cdef uint8_t *input = NULL if in_place or not size else &data[0]
    cdef int end
    if slot == NO_SLOT:
        raise errors.CapacityError("the lane to be measured is in use")
    with nogil:
        if mode < 0:
            end = bench_calls(&lane.w, slot, index, input, size, copy_out, idle, count, out)
        else:
            end = bench_raw(
                &lane.w, slot, index, mode, input, size, copy_out, idle, count, out
            )
    if end != WAIT_DONE:
        raise errors.WorkerCrashedError("the worker was lost while it was measured")
    if not in_place:
        window_free(&lane.w, slot)
    return nanoseconds(samples)


def pipeline(Lane lane, function, const uint8_t[::1] data, uint32_t inflight, uint64_t count,
             *, bint in_place=False):
    """Nanoseconds that `count` calls take, with up to `inflight` at once.

    `in_place`: each input is what lies in its slot, as if it had been made there.
    """
    ticks_calibrate()
    cdef uint32_t index = function, size = len(data)
    cdef uint64_t elapsed
    cdef const uint8_t *input = NULL
    if not in_place:
        input = &data[0]
    with nogil:
        elapsed = bench_pipeline(&lane.w, index, input, size, inflight, count)
    if not elapsed:
        raise errors.WorkerCrashedError("the worker was lost while it was measured")
    return ticks_to_ns(elapsed)
