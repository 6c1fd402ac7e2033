# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""One lane as the client sees it: slots, results and buffers as Python objects.

A slot is free, in flight, or done; results and buffers that lie in its memory
hold a reference each, and the last to go away frees it.  The GIL guards all
state here but a lane's responses, which one thread at a time polls without the
GIL (`Lane.polling`).
"""
cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

import os

from rfaas import errors

@cython.no_gc_clear
cdef class Lane:
    """The client's side of the ring at `offset` of `fd`, which stays the caller's."""

    def __cinit__(self, int fd, uint64_t offset):
        cdef const char *what
        cdef int error
        ticks_calibrate()
        error = window_open(&self.w, fd, offset, &what)
        if error:
            raise errors.SystemCallError(
                f"cannot open a lane: could not {what.decode()}: {os.strerror(error)}"
            )
        self.opened = True
        self.holders = <void **>calloc(self.w.ring.slots, sizeof(void *))
        if self.holders is NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.opened:
            window_close(&self.w)
        free(self.holders)

    @property
    def in_flight(self):
        """Calls announced and not yet collected."""
        return window_in_flight(&self.w)

    @property
    def slots(self):
        """Calls that fit in at once."""
        return self.w.ring.slots

    @property
    def slot_bytes(self):
        """The largest input, and output, of a call."""
        return self.w.ring.slot_bytes

    @property
    def client_sleeps(self):
        """Whether a thread of ours sleeps until a result comes."""
        return bool(self.w.ring.header.client_sleeps)

    def poll(self):
        """Collect what has arrived, unless another thread is at it."""
        if not self.polling and window_poll(&self.w) < 0 and self.failure is None:
            self.failure = nonsense()
        window_sweep(&self.w)

    cdef int pin(self, uint32_t slot) except -1:
        if self.w.calls[slot].refs == 0:
            self.pinned += 1
        self.w.calls[slot].refs += 1
        return 0

    cdef void unpin(self, uint32_t slot) noexcept:
        cdef window_call *call = &self.w.calls[slot]
        call.refs -= 1
        if call.refs == 0:
            self.pinned -= 1
            if call.state == CALL_FREE:  # else the slot is freed with its call
                window_free(&self.w, slot)

    cdef void drop(self, uint32_t slot) noexcept:
        window_drop(&self.w, slot)

    cdef uint32_t buffer_slot(self, const void *data) noexcept:
        """The slot whose input starts at `data` and is lent out as a buffer, or NO_SLOT."""
        cdef const uint8_t *base = ring_input(&self.w.ring, 0)
        cdef uint64_t stride, offset
        cdef uint32_t slot
        if <const uint8_t *>data < base:
            return NO_SLOT
        stride = self.w.ring.stride
        offset = <const uint8_t *>data - base
        slot = <uint32_t>(offset // stride)
        if slot >= self.w.ring.slots or offset % stride or not self.w.calls[slot].refs:
            return NO_SLOT
        return slot

    cdef int put_large(
        self, uint32_t slot, uint32_t function, const void *data, uint32_t size
    ) except -1:
        """As window_put, for inputs that take longer to copy than the GIL to let go."""
        self.busy += 1
        with nogil:
            # SAFETY: the slot is the caller's, who has compared `size` with slot_bytes.
            memcpy(ring_input(&self.w.ring, slot), data, size)
        self.busy -= 1
        window_put(&self.w, slot, function, NULL, size)
        return 0


cdef object again(object failure):
    """The same error once more: each raise gets a traceback of its own."""
    cdef object made = type(failure)(failure.text, hint=failure.hint)
    made.__dict__.update(failure.__dict__)
    return made


cdef object nonsense():
    return errors.ProtocolError(
        "the worker answered with a slot or size that was never asked for",
        hint="a function has written over the ring; its results cannot be trusted",
    )


@cython.final
@cython.freelist(32)
@cython.no_gc_clear
cdef class Result:
    """A result's bytes: small ones held here, large ones in their slot until this goes away."""

    cdef Lane lane               # set while the slot is pinned
    cdef uint32_t slot
    cdef Py_ssize_t size
    cdef uint8_t *data
    cdef object owned
    cdef uint8_t small[104]

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.data, self.size, 0, flags)

    def __dealloc__(self):
        if self.lane is not None:
            self.lane.unpin(self.slot)


@cython.final
@cython.no_gc_clear
cdef class Buffer:
    """The input memory of a slot, lent to the user until this goes away."""

    cdef Lane lane
    cdef uint32_t slot
    cdef Py_ssize_t size

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, ring_input(&self.lane.w.ring, self.slot), self.size, 0, flags)

    def __dealloc__(self):
        if self.lane is not None:
            self.lane.unpin(self.slot)


cdef object result_of(Lane lane, uint32_t slot, object name, bint copy):
    """The memoryview of a call that is done, or the error it ended with; the slot is let go."""
    cdef window_call *call = &lane.w.calls[slot]
    cdef Result result
    cdef uint8_t *output
    if call.status != STATUS_OK:
        try:
            raise failed_call(lane, slot, name)
        finally:
            lane.drop(slot)
    result = Result.__new__(Result)
    result.size = call.size
    if call.is_inline:
        memcpy(result.small, call.data, INLINE_BYTES_MAX)
        result.data = result.small
        lane.drop(slot)
        return PyMemoryView_FromObject(result)
    output = ring_output(&lane.w.ring, slot)
    # A quarter of the slots is kept for calls: past that, results are copied out.
    if copy or (not call.refs and lane.pinned + 1 + (lane.w.ring.slots >> 2) >= lane.w.ring.slots):
        result.owned = PyByteArray_FromStringAndSize(<char *>output, call.size)
        result.data = <uint8_t *>PyByteArray_AS_STRING(result.owned)
        lane.drop(slot)
    else:
        lane.pin(slot)
        call.state = CALL_FREE
        result.lane = lane
        result.slot = slot
        result.data = output
    return PyMemoryView_FromObject(result)


cdef bytes bytes_of(Lane lane, uint32_t slot, object name):
    """As `result_of`, but bytes of the caller's own."""
    cdef window_call *call = &lane.w.calls[slot]
    cdef bytes result
    if call.status != STATUS_OK:
        return bytes(result_of(lane, slot, name, True))
    result = PyBytes_FromStringAndSize(
        <char *>(call.data if call.is_inline else ring_output(&lane.w.ring, slot)), call.size
    )
    lane.drop(slot)
    return result


cdef object failed_call(Lane lane, uint32_t slot, object name):
    cdef window_call *call = &lane.w.calls[slot]
    if call.status == STATUS_FUNCTION_FAILED:
        data = call.data if call.is_inline else ring_output(&lane.w.ring, slot)
        text = PyBytes_FromStringAndSize(<char *>data, min(call.size, 4096))
        return errors.FunctionFailedError(
            f"function {name} failed with status {<int>call.detail}: "
            + (text.decode("utf-8", "replace") or "(no text)"),
            status=<int>call.detail,
        )
    if call.status == STATUS_OUTPUT_TOO_LARGE:
        return errors.OutputTooLargeError(
            f"function {name} reported an output of {call.detail} bytes, "
            f"a slot holds {lane.w.ring.slot_bytes}",
            hint=f"lease with slot_bytes={call.detail} or more",
        )
    if call.status == STATUS_BUSY:
        busy = errors.BusyError(f"a call of {name} found its processor busy")
        busy.lane = lane  # which is not the one to ask next
        return busy
    return errors.ProtocolError(
        f"the worker refused a call of {name}: status {call.status}, detail {call.detail}"
    )


cdef object lend(Lane lane, uint32_t slot, Py_ssize_t size):
    """A writable memoryview of the slot's input; the slot is taken until it goes away."""
    cdef Buffer buffer = Buffer.__new__(Buffer)
    lane.pin(slot)
    buffer.lane = lane
    buffer.slot = slot
    buffer.size = size
    return PyMemoryView_FromObject(buffer)
