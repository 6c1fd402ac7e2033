# A part of _calls.pyx, with which it shares its names: Call and Lanes know each other.

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
    cdef bint claimed            # a thread is settling it, or has
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
                window_watch(&self.lane.w, NO_SLOT, 0, WATCH_NS)
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
        return self.end()

    cdef int expire(self) except -1:
        """It is past its deadline: whatever comes for it, it has failed."""
        if self.claimed:
            return self.settle(False)
        self.claimed = True
        try:
            self.error = self.lanes._late(self.lane, self.function, self.limit_s)
        except BaseException:
            self.claimed = False
            raise
        self.lane.holders[self.slot] = NULL
        self.lane.drop(self.slot)
        return self.end()

    cdef int end(self) except -1:
        self.settled = True
        callbacks, self.callbacks = self.callbacks, None
        for callback in callbacks or ():
            self.lanes._call_back(callback, self)
        return 0

    cdef int wait(self, uint64_t spin, uint64_t patience) except -1:
        """Settle it; IMPATIENT if that takes longer than `patience`."""
        cdef int rc
        while not self.settled:
            rc = self.lanes.wait(self.lane, self.slot, spin, self.deadline, patience, self)
            if rc == IMPATIENT:
                return IMPATIENT
            if rc == LATE:
                self.expire()
            else:
                self.settle(False)
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
        cdef double seconds = -1.0 if timeout is None else max(timeout, 0.0)
        if seconds != seconds:
            raise errors.UsageError(f"timeout must be a number of seconds, not {timeout}")
        if self.wait(self.lanes.spin_ticks, deadline_in(seconds)) == IMPATIENT:
            raise errors.NotDoneError(f"no result of {self.function} yet; the call goes on")
        return self.error

    def _rest(self, double seconds):
        """Sleep until it is settled, for at most `seconds`: for who watches many calls."""
        self.wait(0, deadline_in(seconds))

    def result(self, timeout=None):
        """The memoryview of the result, as `Lanes.call` returns it.

        Raises:
            NotDoneError: none came within `timeout` seconds; the call goes on.
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
