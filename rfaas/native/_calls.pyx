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
    again,
    bytes_of,
    lend,
    monotonic_ns,
    nonsense,
    ns_to_ticks,
    result_of,
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
cdef uint64_t WATCH_NS = 20_000         # one spin, or the first sleep, while another thread polls
cdef uint64_t WATCH_SLEEP_NS_MAX = 1_000_000
cdef double NEVER_S = 3e9               # a century: longer than that is for ever, also inf
cdef Py_ssize_t COPY_WITH_GIL_MAX = 65536  # above, releasing the GIL costs less than the copy

cdef enum: NOT_LATE, LATE, IMPATIENT    # what Lanes.wait says

ticks_calibrate()


include "future.pxi"


cdef uint64_t deadline_in(double seconds) noexcept:
    """Monotonic nanoseconds, `seconds` from now; 0 (never) for a negative span or a century."""
    return monotonic_ns() + <uint64_t>(seconds * 1e9) if 0 <= seconds < NEVER_S else 0


cdef class Lanes:
    """The lanes of a lease.  Hooks for the class above it:

    `_revive()` before a call when there is no lane; `_lost(lane)` when a worker is gone;
    `_check(lane)` about every 50 ms of a wait; `_late(lane, name, timeout_s)` when a call is
    past its deadline, which returns the error of that call; `_broken(lane)` when a lane that
    failed is still in use, which then `_install`s others or none.  `_lost`, `_check` and
    `_late` set `lane.failure`, or leave it.  Each may let other threads in, so whatever was
    known of `lanes` before has to be looked at again.
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

    def _defer(self, lane):
        """Let calls find the other lanes first: results that nobody collected make room there."""
        cdef Lane other
        others = [one for one in self.lanes if one is not lane]
        if 0 < len(others) < len(self.lanes):
            self.lanes = [*others, lane]
            for one in others:
                other = <Lane>one
                other.poll()
                self.spill(other)

    cdef double limit_s(self, object timeout) except? -2.0:
        """The deadline in seconds, -1.0 for none."""
        cdef double limit = self.timeout_s if timeout is None else timeout
        if timeout is not None and not limit > 0:
            raise errors.UsageError(f"timeout must be above 0 seconds, not {timeout}")
        return limit if limit > 0 else -1.0

    cdef Lane pick(self):
        """The lane with the most free slots; the first of equals, which is the hottest."""
        cdef Lane lane, best
        while not self.lanes:
            self._revive()
        # SAFETY: no Python code, hence no other thread, has run since the list was seen filled.
        best = <Lane>self.lanes[0]
        # Nothing in flight and nothing free: its slots hold results that nobody has collected.
        if (window_in_flight(&best.w) or best.w.free_count <= 1) and len(self.lanes) > 1:
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
        cdef int rc
        cdef uint64_t start = ticks() if slot == NO_SLOT else 0, nap_ns = 0
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
                if lane.polling or not window_in_flight(&lane.w):
                    # Any change of another thread's may be what it waits for.
                    self.watch(lane, NO_SLOT, self.spin_ticks, start, deadline, &nap_ns)
                    PyErr_CheckSignals()
                    rc = LATE if deadline and monotonic_ns() >= deadline else NOT_LATE
                else:
                    rc = self.wait(lane, NO_SLOT, self.spin_ticks, deadline, 0, None)
                window_sweep(&lane.w)
                if rc == LATE and not lane.w.free_count:
                    raise errors.DeadlineExceededError(
                        f"no slot was free for a call of {name} within {limit_s:g} s",
                        hint="raise timeout, or lease with more slots",
                    )
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
                    lane.put_large(slot, function, view.buf, view.len)
                else:
                    window_put(&lane.w, slot, function, view.buf, view.len)
        finally:
            PyBuffer_Release(&view)
        window_ring(&lane.w)
        slot_out[0] = slot
        return lane

    cdef int watch(
        self, Lane lane, uint32_t slot, uint64_t spin, uint64_t start, uint64_t until,
        uint64_t *nap_ns
    ) noexcept:
        """Wait a little for what another thread collects: until `spin` ticks after `start`
        it spins, then it sleeps, longer each time but not past `until` (0: never)."""
        cdef int rc
        cdef uint64_t now, sleep_ns = 0, turn = ns_to_ticks(WATCH_NS)
        if ticks() - start >= spin:
            turn = 0
            sleep_ns = nap_ns[0] = min(max(2 * nap_ns[0], WATCH_NS), WATCH_SLEEP_NS_MAX)
            if until:
                now = monotonic_ns()
                sleep_ns = min(sleep_ns, until - now if until > now else 1)
        with nogil:
            rc = window_watch(&lane.w, slot, turn, sleep_ns)
        return rc

    cdef int wait(
        self, Lane lane, uint32_t slot, uint64_t spin, uint64_t deadline, uint64_t patience,
        Call call
    ) except -1:
        """Return when the call in `slot` (NO_SLOT: any) is done or its lane has failed.

        Before that, LATE past `deadline` (the call's) and IMPATIENT past `patience` (the
        caller's), both in monotonic nanoseconds, 0 for never.  It spins for `spin` ticks.
        `call`, where there is one, is that call's future: another thread may settle it.
        """
        cdef int rc
        cdef uint64_t now, nap_ns = 0, sleep_ns = SLICE_NS, budget = spin
        cdef uint64_t start = ticks(), checked = start
        cdef uint64_t check_ticks = ns_to_ticks(SLICE_NS - SLICE_NS // 8)  # clocks differ a little
        cdef uint64_t until = min(deadline or NEVER, patience or NEVER)
        if until != NEVER:
            now = monotonic_ns()
            sleep_ns = min(SLICE_NS, until - now if until > now else 1)
            spin = min(spin, ns_to_ticks(sleep_ns))
        while slot == NO_SLOT or window_state(&lane.w, slot) != CALL_DONE:
            if lane.failure is not None or (call is not None and call.claimed):
                return NOT_LATE
            if lane.polling or not window_in_flight(&lane.w):
                if slot == NO_SLOT:
                    return NOT_LATE
                rc = self.watch(lane, slot, budget, start, 0 if until == NEVER else until, &nap_ns)
            else:
                lane.polling = True
                with nogil:
                    rc = window_wait(&lane.w, slot, spin, sleep_ns)
                lane.polling = False
                spin = 0
            if rc == WAIT_DONE:
                return NOT_LATE
            if rc == WAIT_INVALID:
                lane.failure = lane.failure or nonsense()
            elif rc == WAIT_ENDED:
                self._lost(lane)
            elif ticks() - checked >= check_ticks:
                self._check(lane)
                checked = ticks()
            PyErr_CheckSignals()
            if until != NEVER and lane.failure is None:
                now = monotonic_ns()
                if deadline and now >= deadline:
                    return LATE
                if patience and now >= patience:
                    self._check(lane)  # who comes again and again with little patience hears too
                    return IMPATIENT
                sleep_ns = min(SLICE_NS, until - now if until > now else 1)
        return NOT_LATE

    cdef int collect(
        self, Lane lane, uint32_t slot, double limit_s, uint64_t deadline, object name
    ) except -1:
        """Wait for a call of which nobody else knows; if it fails, its slot is let go."""
        lane.busy += 1
        try:
            if self.wait(lane, slot, self.spin_ticks, deadline, 0, None) == LATE:
                raise self._late(lane, name, limit_s)
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
