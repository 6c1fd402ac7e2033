# cython: language_level=3, boundscheck=False, wraparound=False
"""The worker's engine: load a library, run its lanes; and the executor's word on a ring.

It runs inside the worker process.  The lanes are threads of their own that
never touch Python.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

import os

from rfaas import errors

cdef extern from "<dlfcn.h>" nogil:
    int RTLD_NOW, RTLD_LOCAL
    void *dlopen(const char *path, int flags)
    void *dlsym(void *handle, const char *name)
    char *dlerror()

cdef extern from "<sys/mman.h>" nogil:
    int PROT_READ, PROT_WRITE, MAP_SHARED
    void *MAP_FAILED
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t length)

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, unsigned long value)
    int PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_CHILD_SUBREAPER

cdef extern from "lane.h" nogil:
    enum: RING_ENDED, PAGE_BYTES
    uint64_t HOT_ALWAYS

    ctypedef struct ring_header:
        uint32_t state
        uint32_t client_sleeps

    ctypedef struct ring_map:
        ring_header *header

    ctypedef struct ring_account:
        pass

    ctypedef struct worker_lane:
        ring_map ring
        ring_account *account
        const lane_function *functions
        uint32_t function_count
        uint64_t hot_ticks
        int cpu
        int turn_fd
        void (*loop)(worker_lane *lane) noexcept nogil

    uint64_t ns_to_ticks(uint64_t ns)
    void ticks_calibrate()
    int ring_open(ring_map *ring, int fd, uint64_t offset, const char **what)
    void ring_close(ring_map *ring)
    int ring_guard(const ring_map *ring)
    void lane_loop(worker_lane *lane)
    void lane_loop_shared(worker_lane *lane)
    int lane_start(worker_lane *lane)
    void lane_stop(worker_lane *lane)
    void fault_report()
    void store_release(uint32_t *p, uint32_t value)
    void futex_wake(uint32_t *word)
    uint32_t FUNCTIONS_MAX

ticks_calibrate()


def die_with_parent(int signal, str name):
    """Have the kernel send `signal` when the parent is gone; `name` is for ps(1)."""
    cdef bytes raw = name.encode()[:15]
    if prctl(PR_SET_PDEATHSIG, signal):
        raise errors.SystemCallError("prctl(PR_SET_PDEATHSIG) failed")
    prctl(PR_SET_NAME, <unsigned long><char *>raw)


def report_faults():
    """Have a crash of this process say on stderr at which address it was."""
    fault_report()


def adopt_orphans():
    """Become the parent of what our descendants leave behind, so that it can be ended."""
    if prctl(PR_SET_CHILD_SUBREAPER, 1):
        raise errors.SystemCallError("prctl(PR_SET_CHILD_SUBREAPER) failed")


def end_ring(int fd, uint64_t offset):
    """Say on the ring at `offset` of `fd` that nobody serves it any more, and wake its client."""
    cdef ring_header *header = <ring_header *>mmap(
        NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset
    )
    if header == MAP_FAILED:
        raise errors.SystemCallError("cannot map the header of a ring")
    store_release(&header.state, RING_ENDED)
    store_release(&header.client_sleeps, 0)
    futex_wake(&header.client_sleeps)
    munmap(header, PAGE_BYTES)


cdef class Library:
    """A loaded library's functions, in the order of the table that clients use.

    Never unloaded: its threads and atexit handlers may live as long as the process.
    """

    def __init__(self, int fd):
        """Load the shared object behind `fd`, which may be closed afterwards.

        Raises LibraryError with the dynamic linker's word when it refuses.
        """
        # SAFETY: constructors run here; what they do is confined with the process.
        cdef bytes path = f"/proc/self/fd/{fd}".encode()
        cdef const char *raw = path
        with nogil:
            self.handle = dlopen(raw, RTLD_NOW | RTLD_LOCAL)
        if self.handle is NULL:
            text = dlerror().decode("utf-8", "replace").replace(f"/proc/self/fd/{fd}: ", "")
            raise errors.LibraryError(
                f"the library cannot be loaded: {text}",
                hint="link what it needs into it, or install it on the node"
                if "undefined symbol" in text or "cannot open shared object" in text
                else "",
            )

    def bind(self, table):
        """Find each `(name, abi)` of the table, whose indices the lanes will serve."""
        cdef void *address
        cdef bytes raw
        self.functions = <lane_function *>malloc(max(1, len(table)) * sizeof(lane_function))
        if self.functions is NULL:
            raise MemoryError
        for name, abi in table:
            raw = name.encode()
            address = dlsym(self.handle, raw)
            if address is NULL:
                raise errors.LibraryError(f"function {name} vanished from the library")
            self.functions[self.count].address = address
            self.functions[self.count].abi = abi
            self.count += 1


cdef class WorkerLanes:
    """The running lanes of this process."""

    cdef worker_lane *lanes
    cdef ring_account *accounts
    cdef int count
    cdef Library library
    cdef tuple turns

    def __init__(self, Library library, int rings_fd, uint64_t ring_bytes, int account_fd, cpus,
                 long hot_timeout_ms, turns=()):
        """Open a ring for each entry of `cpus`, one after another in `rings_fd`, and start its
        thread, pinned to that processor (-1: anywhere).  `turns`, where there are any: the
        descriptor of each one's lock, closed with the lanes."""
        cdef const char *what
        cdef int error, index
        ticks_calibrate()
        self.library = library
        self.turns = tuple(turns)
        if self.turns and len(self.turns) != len(cpus):
            raise errors.ProtocolError(f"{len(turns)} locks cannot be, for {len(cpus)} lanes")
        self.lanes = <worker_lane *>calloc(len(cpus), sizeof(worker_lane))
        self.accounts = <ring_account *>mmap(
            NULL, 64 * len(cpus), PROT_READ | PROT_WRITE, MAP_SHARED, account_fd, 0
        )
        if self.lanes is NULL or self.accounts == MAP_FAILED:
            raise MemoryError
        for index in range(len(cpus)):
            lane = &self.lanes[index]
            error = ring_open(&lane.ring, rings_fd, index * ring_bytes, &what)
            if not error:
                what = "protect its guard pages"
                error = ring_guard(&lane.ring)
            if error:
                raise errors.SystemCallError(
                    f"cannot open a ring: could not {what.decode()}: {os.strerror(error)}"
                )
            lane.account = &self.accounts[index]
            lane.functions = library.functions
            lane.function_count = library.count
            lane.loop = lane_loop_shared if self.turns else lane_loop
            lane.turn_fd = self.turns[index] if self.turns else -1
            lane.cpu = cpus[index]
            lane.hot_ticks = (
                HOT_ALWAYS if hot_timeout_ms < 0 else ns_to_ticks(hot_timeout_ms * 1_000_000)
            )
            error = lane_start(lane)
            if error:
                raise errors.SystemCallError(f"cannot start a lane: {os.strerror(error)}")
            self.count += 1

    def stop(self):
        """End the lanes; returns when their threads are gone."""
        cdef int index
        with nogil:
            for index in range(self.count):
                lane_stop(&self.lanes[index])

    def close(self):
        """End them and let go of their rings and accounts; the worker may then serve others."""
        cdef int index
        self.stop()
        for index in range(self.count):
            ring_close(&self.lanes[index].ring)  # SAFETY: its thread is gone, nobody else maps it
        if self.lanes is not NULL:
            munmap(self.accounts, 64 * self.count)
        for fd in self.turns:
            os.close(fd)
        self.turns = ()
        free(self.lanes)
        self.lanes, self.accounts, self.count = NULL, NULL, 0
