# The client's engine as other Cython modules see it.
from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef extern from "ring.h" nogil:
    ctypedef struct ring_header:
        uint32_t state
        uint32_t worker_sleeps
        uint32_t client_sleeps

    ctypedef struct ring_map:
        ring_header *header
        uint64_t slot_bytes
        uint64_t stride
        uint32_t slots

    uint64_t ticks()
    uint64_t monotonic_ns()
    uint64_t ns_to_ticks(uint64_t ns)
    uint64_t ticks_to_ns(uint64_t count)
    void ticks_calibrate()
    uint8_t *ring_input(const ring_map *ring, uint32_t slot)
    uint8_t *ring_output(const ring_map *ring, uint32_t slot)


cdef extern from "window.h" nogil:
    uint32_t NO_SLOT "UINT32_MAX"
    enum: CALL_FREE, CALL_IN_FLIGHT, CALL_DONE
    enum: WAIT_DONE, WAIT_AGAIN, WAIT_ENDED, WAIT_INVALID
    enum: INLINE_BYTES_MAX
    enum: STATUS_OK, STATUS_FUNCTION_FAILED, STATUS_FUNCTION_UNKNOWN, STATUS_OUTPUT_TOO_LARGE
    enum: STATUS_BUSY

    ctypedef struct window_call:
        uint32_t state
        uint32_t size
        uint32_t status
        uint32_t detail
        uint32_t is_inline
        uint32_t refs
        uint8_t *data

    ctypedef struct window_carrier:
        pass

    ctypedef struct window:
        ring_map ring
        uint32_t free_count
        window_call *calls
        const window_carrier *carrier
        void *carried_by

    int window_open(window *w, int fd, uint64_t offset, const char **what)
    void window_close(window *w)
    int window_poll(window *w)
    int window_wait(window *w, uint32_t slot, uint64_t spin_ticks, uint64_t sleep_ns)
    int window_watch(window *w, uint32_t slot, uint64_t spin_ticks, uint64_t sleep_ns)
    uint32_t window_in_flight(const window *w)
    uint32_t window_state(const window *w, uint32_t slot)
    uint32_t window_take(window *w)
    void window_free(window *w, uint32_t slot)
    void window_drop(window *w, uint32_t slot)
    void window_sweep(window *w)
    void window_put(window *w, uint32_t slot, uint32_t function, const void *data, uint32_t size)
    void window_ring(window *w)


cdef class Lane:
    cdef window w
    cdef bint opened
    cdef bint polling            # a thread is in window_wait on this lane
    cdef uint32_t busy           # threads that hold a slot and are about to let go of it
    cdef uint32_t pinned         # slots that results and buffers use
    cdef void **holders          # slot -> the Call (borrowed) that waits for it
    cdef public object failure   # the RfaasError that ended this lane, or None
    cdef public object explain   # None, or what tells why a lane ended: an RfaasError, if it knows

    cdef int pin(self, uint32_t slot) except -1
    cdef void unpin(self, uint32_t slot) noexcept
    cdef void drop(self, uint32_t slot) noexcept
    cdef uint32_t buffer_slot(self, const void *data) noexcept
    cdef int put_large(
        self, uint32_t slot, uint32_t function, const void *data, uint32_t size
    ) except -1


cdef object nonsense()
cdef object again(object failure)
cdef object result_of(Lane lane, uint32_t slot, object name, bint copy)
cdef bytes bytes_of(Lane lane, uint32_t slot, object name)
cdef object lend(Lane lane, uint32_t slot, Py_ssize_t size)
