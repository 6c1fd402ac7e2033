# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Calls on the lanes of a lease: the client's engine under `rfaas.client.lease.Lease`.

It knows names, bytes and deadlines; people, links and leases are the business
of the class above it, which inherits from `Lanes` and fills in the hooks that
are called when something is not as usual.
"""
cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from collections import deque

from rfaas import errors

from rfaas.native._window cimport (
    CALL_DONE,
    CALL_FREE,
    INLINE_BYTES_MAX,
    NO_SLOT,
    WAIT_DONE,
    WAIT_ENDED,
    WAIT_INVALID,
    Lane,
    bytes_of,
    lend,
    monotonic_ns,
    nonsense,
    ns_to_ticks,
    result_of,
    ring_input,
    ticks,
    ticks_calibrate,
    window_in_flight,
    window_put,
    window_ring,
    window_state,
    window_sweep,
    window_take,
    window_wait,
    window_watch,
)

cdef uint64_t SLICE_NS = 50_000_000     # longest sleep between two looks at the control link
cdef uint64_t NEVER = 0xFFFFFFFFFFFFFFFF
cdef uint64_t WATCH_NS = 20_000         # spin while another thread polls the lane
cdef Py_ssize_t COPY_WITH_GIL_MAX = 65536  # above, releasing the GIL costs less than the copy

ticks_calibrate()


@cython.final
@cython.no_gc_clear
cdef class Call:
    """A call in flight, in the manner of concurrent.futures.Future.

    Whoever waits for it polls the lane: there is no helper thread, until
    `add_done_callback` asks for one.  Dropping it abandons the call, which runs on.
    """

    cdef Lanes lanes
    cdef Lane lane
    cdef uint32_t slot
    cdef double limit_s          # of the call, from its start; -1.0 for none
    cdef uint64_t deadline       # in monotonic nanoseconds, 0 for none
    cdef bint claimed            # a thread is taking the result out of the slot, or has
    cdef bint settled
    cdef readonly str function
    cdef object value
    cdef object error
    cdef list callbacks

    def __dealloc__(self):
        if not self.claimed and self.lane is not None:
            self.lane.holders[self.slot] = NULL
            if self.lane.failure is None:
                self.lane.drop(self.slot)

    cdef int settle(self, bint copy) except -1:
        """Take the result out of the slot, or the lane's failure if it never comes."""
        if self.settled:
            return 0
        if self.claimed:
            with nogil:  # which that thread may wait for
                window_watch(&self.lane.w, NO_SLOT, ns_to_ticks(WATCH_NS))
            return 0
        if window_state(&self.lane.w, self.slot) == CALL_DONE:
            self.claimed = True
            self.lane.holders[self.slot] = NULL
            try:
                self.value = result_of(self.lane, self.slot, self.function, copy)
            except Exception as error:
                self.error = error
        elif self.lane.failure is not None:
            self.claimed = True
            self.lane.holders[self.slot] = NULL
            self.error = again(self.lane.failure)
        else:
            return 0
        self.settled = True
        callbacks, self.callbacks = self.callbacks, None
        for callback in callbacks or ():
            self.lanes._call_back(callback, self)
        return 0

    def done(self):
        """Whether `result` would return, or raise, at once."""
        if not self.settled:
            self.lane.poll()
            self.settle(False)
        return self.settled

    def running(self):
        return not self.done()

    def cancel(self):
        """False: a call cannot be taken back once it is in the worker's memory."""
        return False

    def cancelled(self):
        return False

    def exception(self, timeout=None):
        """Wait as `result` does; the error that the call ended with, or None."""
        cdef uint64_t patience = 0 if timeout is None else deadline_in(timeout)
        while not self.settled:
            self.lanes.wait(
                self.lane, self.slot, self.limit_s, self.deadline, patience, self.function, self
            )
            self.settle(False)
        return self.error

    def result(self, timeout=None):
        """The memoryview of the result, as `Lanes.call` returns it.

        Raises:
            TimeoutError: none came within `timeout` seconds; the call goes on.
            RfaasError: what `Lanes.call` raises.
        """
        error = self.exception(timeout)
        if error is not None:
            raise error
        return self.value

    def add_done_callback(self, callback):
        """Call `callback(self)` once it is done: at once, or from a thread that waits for it."""
        if self.done():
            self.lanes._call_back(callback, self)
        elif self.callbacks is None:
            self.callbacks = [callback]
            self.lanes._watch(self)
        else:
            self.callbacks.append(callback)


cdef uint64_t deadline_in(double seconds) noexcept:
    """The monotonic time in nanoseconds, `seconds` from now; 0 (never) for a negative span."""
    return monotonic_ns() + <uint64_t>(seconds * 1e9) if seconds >= 0 else 0


cdef object again(object failure):
    """The same error once more: each raise gets a traceback of its own."""
    return type(failure)(failure.text, hint=failure.hint)


cdef class Lanes:
    """The lanes of a lease.  Hooks for the class above it:

    `_revive()` before a call when there is no lane; `_lost(lane)` when a worker is gone;
    `_check(lane)` at least every 50 ms of a wait; `_late(lane, name, timeout_s)` when a call
    is past its deadline; `_broken(lane)` when a lane that failed is still in use, which then
    `_install`s others or none.  `_lost`, `_check` and `_late` set `lane.failure` or raise.
    """

    cdef list lanes
    cdef dict indices
    cdef readonly tuple functions
    cdef uint64_t spin_ticks
    cdef double timeout_s

    def __init__(self, spin_us=1000, timeout_s=0.0):
        ticks_calibrate()
        self.lanes = []
        self.indices = {}
        self.functions = ()
        self.spin_ticks = ns_to_ticks(<uint64_t>(spin_us * 1000))
        self.timeout_s = timeout_s

    def _install(self, lanes, functions):
        """Serve calls over `lanes` from now on; an empty list: revive before the next call."""
        self.lanes = list(lanes)
        self.functions = tuple(functions)
        self.indices = {name: index for index, name in enumerate(functions)}

    @property
    def _lanes(self):
        return tuple(self.lanes)

    cdef double limit_s(self, object timeout) except? -2.0:
        """The deadline in seconds, -1.0 for none."""
        cdef double limit = self.timeout_s if timeout is None else timeout
        if timeout is not None and not limit > 0:
            raise errors.UsageError(f"timeout must be above 0 seconds, not {timeout}")
        return limit if limit > 0 else -1.0

    cdef Lane pick(self):
        """The lane with the most free slots; the first of equals, which is the hottest."""
        cdef Lane lane, best
        cdef Py_ssize_t count = len(self.lanes)
        if count == 0:
            self._revive()
            count = len(self.lanes)
        best = <Lane>self.lanes[0]
        if count > 1 and window_in_flight(&best.w):
            for item in self.lanes:
                lane = <Lane>item
                lane.poll()
                if lane.w.free_count > best.w.free_count:
                    best = lane
        if best.failure is not None:
            self._broken(best)
            return self.pick()
        return best

    cdef uint32_t take(
        self, Lane lane, double limit_s, uint64_t deadline, object name
    ) except? 0xFFFFFFFF:
        """A free slot; makes room, or waits for a call in flight to make some."""
        cdef uint32_t slot = window_take(&lane.w)
        cdef bint hopeless
        while slot == NO_SLOT:
            if lane.failure is not None:
                raise again(lane.failure)
            # First: what another thread collects from here on may be what makes room.
            hopeless = not window_in_flight(&lane.w) and not lane.busy
            lane.poll()
            if not self.spill(lane) and not lane.w.free_count:
                if hopeless:
                    raise errors.CapacityError(
                        f"all {lane.w.ring.slots} slots of the lane are in use by buffers, "
                        "results and maps",
                        hint="release some, or lease with more slots",
                    )
                self.wait(lane, NO_SLOT, limit_s, deadline, 0, name, None)
                window_sweep(&lane.w)
            slot = window_take(&lane.w)
        return slot

    cdef bint spill(self, Lane lane) except -1:
        """Move the results that nobody has collected yet out of their slots."""
        cdef uint32_t slot
        cdef bint freed = False
        for slot in range(lane.w.ring.slots):
            if lane.holders[slot] is not NULL and window_state(&lane.w, slot) == CALL_DONE:
                (<Call>lane.holders[slot]).settle(True)
                freed = True
        return freed

    cdef int index_of(self, object name) except -1:
        found = self.indices.get(name)
        if found is None:
            if not self.lanes:
                self._revive()
                found = self.indices.get(name)
            if found is None:
                raise errors.FunctionNotFoundError(
                    f"the library has no function {name!r}",
                    hint=errors.near(str(name), self.functions)
                    or f"it has {', '.join(self.functions[:8])}",
                )
        return found

    cdef Lane announce(
        self, object name, object data, double limit_s, uint64_t deadline, uint32_t *slot_out
    ):
        """Put a call on a lane; the deadline is for waiting for a slot."""
        cdef int function = self.index_of(name)
        cdef Lane lane
        cdef Py_buffer view
        cdef uint32_t slot = NO_SLOT
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if view.len > INLINE_BYTES_MAX:
                for item in self.lanes:
                    lane = <Lane>item
                    slot = lane.buffer_slot(view.buf)
                    if slot != NO_SLOT:
                        break
            if slot == NO_SLOT:
                lane = self.pick()
            if view.len > <Py_ssize_t>lane.w.ring.slot_bytes:
                raise errors.PayloadTooLargeError(
                    f"input of {view.len} bytes is too large for {name}: "
                    f"a slot holds {lane.w.ring.slot_bytes}",
                    hint=f"lease with slot_bytes={view.len} or more",
                )
            if slot != NO_SLOT:
                if lane.w.calls[slot].state != CALL_FREE:
                    lane.poll()  # the call may be an abandoned one that is done by now
                if lane.w.calls[slot].state != CALL_FREE:
                    raise errors.UsageError(
                        "the buffer is in use by a call that was not collected",
                        hint="wait for that call's result, or use another buffer",
                    )
                window_put(&lane.w, slot, function, NULL, view.len)
            else:
                slot = self.take(lane, limit_s, deadline, name)
                if view.len > COPY_WITH_GIL_MAX:
                    lane.busy += 1
                    with nogil:
                        memcpy(ring_input(&lane.w.ring, slot), view.buf, view.len)
                    lane.busy -= 1
                    window_put(&lane.w, slot, function, NULL, view.len)
                else:
                    window_put(&lane.w, slot, function, view.buf, view.len)
        finally:
            PyBuffer_Release(&view)
        window_ring(&lane.w)
        slot_out[0] = slot
        return lane

    cdef int wait(
        self, Lane lane, uint32_t slot, double limit_s, uint64_t deadline, uint64_t patience,
        object name, Call call
    ) except -1:
        """Return when the call in `slot` (NO_SLOT: any) is done or its lane has failed.

        Past `deadline` (the call's, of `limit_s` seconds) its worker is ended; past `patience`
        (the caller's) TimeoutError is raised and the call goes on; both in monotonic
        nanoseconds, 0 for never.  `call`, where there is one, is that call's future: another
        thread may settle it.
        """
        cdef int rc
        cdef uint64_t now, sleep_ns = SLICE_NS, spin = self.spin_ticks
        cdef uint64_t checked = ticks(), slice_ticks = ns_to_ticks(SLICE_NS)
        cdef uint64_t until = min(deadline or NEVER, patience or NEVER)
        if until != NEVER:
            now = monotonic_ns()
            sleep_ns = min(SLICE_NS, until - now if until > now else 1)
            spin = min(spin, ns_to_ticks(sleep_ns))
        while slot == NO_SLOT or window_state(&lane.w, slot) != CALL_DONE:
            if lane.failure is not None or (call is not None and call.claimed):
                return 0
            if lane.polling or not window_in_flight(&lane.w):
                with nogil:
                    rc = window_watch(&lane.w, slot, ns_to_ticks(WATCH_NS))
                if slot == NO_SLOT:  # any change of another thread's may be what it waits for
                    return PyErr_CheckSignals()
                if rc != WAIT_DONE and ticks() - checked < slice_ticks and until == NEVER:
                    continue  # who polls looks after the link and after signals
                checked = ticks()
            else:
                lane.polling = True
                with nogil:
                    rc = window_wait(&lane.w, slot, spin, sleep_ns)
                lane.polling = False
            if rc == WAIT_DONE:
                return 0
            PyErr_CheckSignals()
            if rc == WAIT_INVALID:
                lane.failure = lane.failure or nonsense()
            elif rc == WAIT_ENDED:
                self._lost(lane)
            else:
                self._check(lane)
            if until != NEVER and lane.failure is None:
                now = monotonic_ns()
                if deadline and now >= deadline:
                    self._late(lane, name, limit_s)
                if patience and now >= patience:
                    raise TimeoutError(f"no result of {name} yet; the call goes on")
                sleep_ns = min(SLICE_NS, until - now if until > now else 1)
            spin = 0
        return 0

    cdef int collect(
        self, Lane lane, uint32_t slot, double limit_s, uint64_t deadline, object name
    ) except -1:
        """Wait for a call of which nobody else knows; if it fails, its slot is let go."""
        lane.busy += 1
        try:
            self.wait(lane, slot, limit_s, deadline, 0, name, None)
            if window_state(&lane.w, slot) != CALL_DONE:
                raise again(lane.failure)
        except BaseException:
            lane.busy -= 1
            lane.drop(slot)
            raise
        lane.busy -= 1
        return 0

    def call(self, name, data=b"", *, timeout=None):
        """Invoke function `name` on `data` and wait for its result.

        Args:
            data: any C-contiguous buffer; copied into a slot, or used in place when it
                is memory of `buffer`.  The caller's again when this returns.
            timeout: seconds; None: the session's `call_timeout_s`.

        Returns:
            A memoryview of the result.  It owns its memory (a slot, while there are
            plenty); for an input made by `buffer`, it is valid until the next call
            with the same buffer.

        Raises:
            FunctionNotFoundError, PayloadTooLargeError: nothing was sent.
            CallError: this call failed (see `rfaas.errors`); the lease lives on.
            WorldError: the lease or its node is gone.
        """
        cdef uint32_t slot
        cdef double limit = self.limit_s(timeout)
        cdef uint64_t deadline = deadline_in(limit)
        cdef Lane lane = self.announce(name, data, limit, deadline, &slot)
        self.collect(lane, slot, limit, deadline, name)
        return result_of(lane, slot, name, False)

    def submit(self, name, data=b"", *, timeout=None):
        """Start a call; returns its future.  Arguments and errors as in `call`.

        An input made by `buffer` must not be touched until the call is done.  The deadline
        counts from here; it takes effect when somebody waits for the call.
        """
        cdef Call call = Call.__new__(Call)
        call.limit_s = self.limit_s(timeout)
        call.deadline = deadline_in(call.limit_s)
        cdef Lane lane = self.announce(name, data, call.limit_s, call.deadline, &call.slot)
        call.lanes = self
        call.lane = lane
        call.function = name
        lane.holders[call.slot] = <void *>call
        return call

    def map(self, name, inputs):
        """Results of `name` on each of `inputs`, in order, as bytes; pipelined on all lanes.

        Raises what `call` raises, at the result whose turn it is.
        """
        cdef uint32_t slot
        cdef Lane lane
        cdef double limit = self.limit_s(None)
        cdef object pending = deque()
        self.index_of(name)
        try:
            for data in inputs:
                while pending and not self.has_room():
                    lane, slot = pending.popleft()
                    self.collect(lane, slot, limit, deadline_in(limit), name)
                    yield bytes_of(lane, slot, name)
                lane = self.announce(name, data, limit, deadline_in(limit), &slot)
                pending.append((lane, slot))
            while pending:
                lane, slot = pending.popleft()
                self.collect(lane, slot, limit, deadline_in(limit), name)
                yield bytes_of(lane, slot, name)
        finally:
            for lane, slot in pending:
                lane.drop(slot)

    cdef bint has_room(self):
        """Whether some lane has a free slot, so that a call would not wait for one."""
        cdef Lane lane
        for item in self.lanes:
            lane = <Lane>item
            window_sweep(&lane.w)
            if lane.w.free_count > 1:
                return True
        return False

    def buffer(self, size):
        """Writable memory of `size` bytes in a slot, which `call` and `submit` use in place.

        It lies page-aligned at the start of a slot's input and is the caller's until the
        memoryview goes away.  Raises CapacityError when too few slots would be left.
        """
        cdef Lane lane = self.pick()
        if not 0 <= size <= lane.w.ring.slot_bytes:
            raise errors.PayloadTooLargeError(
                f"a buffer of {size} bytes is too large: a slot holds {lane.w.ring.slot_bytes}",
                hint=f"lease with slot_bytes={size} or more",
            )
        for item in self.lanes:
            if (<Lane>item).pinned < lane.pinned:
                lane = <Lane>item
        if lane.pinned + 1 >= lane.w.ring.slots:
            raise errors.CapacityError(
                f"all slots but one of {lane.w.ring.slots} are in use by buffers and results",
                hint="release some, or lease with more slots",
            )
        return lend(lane, self.take(lane, -1.0, 0, "buffer"), size)
