# cython: language_level=3, boundscheck=False, wraparound=False
"""Lanes over a NIC (verbs.h): the client connects, a worker listens and serves.

The only module that links to librdmacm and libibverbs: a node without them
lacks this transport and nothing else.  Its errors are `Trouble`, numbers and
steps that `rfaas.transport.verbs` puts into words.
"""
from cpython cimport array
from libc.errno cimport EINTR, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

import array as arrays
import os

from rfaas import errors

from rfaas.native._window cimport Lane, ns_to_ticks, ticks_calibrate, ticks_to_ns
from rfaas.native._worker cimport Library

ticks_calibrate()

cdef int EXPLAIN_MS = 200  # what the connection manager has to tell may be that late

FAULTS = {
    FAULT_SEND: "send", FAULT_RECEIVE: "receive", FAULT_POST: "post", FAULT_EVENT: "event",
    FAULT_PROTOCOL: "protocol", FAULT_PORT: "port", FAULT_WORKER: "worker",
}
REFUSALS = {
    REFUSED_STRANGER: "stranger", REFUSED_VERSION: "version", REFUSED_SECRET: "secret",
    REFUSED_LANE: "lane", REFUSED_GEOMETRY: "geometry", REFUSED_TAKEN: "taken",
    REFUSED_QUEUES: "queues", REFUSED_THREAD: "thread",
}


class Trouble(Exception):
    """A step that failed.

    `error` is its errno, or 0; `event` the name of the rdma_cm event that came instead, or "",
    with its `status`; `refusal` one of REFUSALS, or ""; `bytes` what was to be registered;
    `tries` how many times an address was looked for, or 0.
    """

    def __init__(self, step, error, event, status, refusal, size, tries=0):
        super().__init__(step)
        self.step = step
        self.error = error
        self.event = event
        self.status = status
        self.refusal = refusal
        self.bytes = size
        self.tries = tries


cdef extern from "Python.h":
    int check_signals "PyErr_CheckSignals"() noexcept


cdef int interrupted() noexcept nogil:
    """Run the handlers of what signals came; if one raises, its exception stays set."""
    with gil:
        return check_signals() != 0


verbs_interrupted = interrupted


cdef int raise_it() except -1:
    """Hand on the exception that is set."""
    return -1


cdef object trouble_of(const verbs_trouble *trouble):
    return Trouble(
        trouble.step.decode(),
        trouble.error,
        rdma_event_str(trouble.event).decode() if trouble.event >= 0 else "",
        trouble.status,
        REFUSALS.get(trouble.reason, ""),
        trouble.bytes,
        trouble.tries,
    )


cdef object fault_of(const verbs_link *link):
    """(where, number, name in the library's words, detail), or None while it works."""
    cdef int status = link.fault.status
    if not link.broken:
        return None
    if link.fault.where in (FAULT_SEND, FAULT_RECEIVE):
        text = ibv_wc_status_str(status).decode()
    elif link.fault.where == FAULT_EVENT:
        text = rdma_event_str(status).decode()
    elif link.fault.where == FAULT_PORT:
        text = ibv_port_state_str(status).decode()
    elif link.fault.where == FAULT_POST:
        text = os.strerror(status)
    elif link.fault.where == FAULT_WORKER:
        text = "the worker answered what it was never asked" if status else "the worker is gone"
    else:
        text = "a request for a slot that there is not"
    return FAULTS[link.fault.where], status, text, link.fault.detail


cdef int address(sockaddr_storage *out, host, port) except -1:
    cdef addrinfo hints
    cdef addrinfo *found = NULL
    cdef bytes node = host.encode(), service = str(port).encode()
    memset(&hints, 0, sizeof(hints))
    hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV
    if getaddrinfo(node, service, &hints, &found):
        raise errors.ProtocolError(f"{host!r:.60} is no address of an RDMA device")
    memset(out, 0, sizeof(sockaddr_storage))
    memcpy(out, found.ai_addr, found.ai_addrlen)
    freeaddrinfo(found)
    return 0


def lock_always(bint on):
    """Lock all windows from now on, as for a device that does no paging on demand; for tests."""
    global verbs_locks_always
    verbs_locks_always = on


def connect(Lane lane, int number, source, host, port, const uint8_t[::1] secret, timeout_s):
    """Have `lane`, whose ring is memory of the client's own, carried to a worker.

    Args:
        number: the lane's, at the worker.
        source: address of the device to use; "": what the kernel's routes say.
        host, port: where the worker listens.
        secret: SECRET_BYTES bytes that the worker has told.

    Raises:
        Trouble: the step that failed.
    """
    cdef sockaddr_storage here, there
    cdef verbs_trouble trouble
    cdef uint64_t timeout_ns = <uint64_t>(timeout_s * 1e9)
    cdef uint16_t index = number
    cdef verbs_link *link
    cdef const sockaddr *from_ = <sockaddr *>&here if source else NULL
    cdef int failed
    if lane.w.carrier is not NULL:
        raise errors.InternalError("the lane is connected")
    if len(secret) != SECRET_BYTES:
        raise errors.ProtocolError(f"a secret has {SECRET_BYTES} bytes, not {len(secret)}")
    if source:
        address(&here, source, 0)
    address(&there, host, port)
    link = <verbs_link *>calloc(1, sizeof(verbs_link))
    if link is NULL:
        raise MemoryError
    with nogil:
        failed = verbs_connect(
            link, &lane.w.ring, from_, <sockaddr *>&there, index, &secret[0], timeout_ns,
            &trouble,
        )
        if failed:
            verbs_close(link)
    if failed:
        free(link)
        if trouble.error == EINTR:
            raise_it()
        raise trouble_of(&trouble)
    lane.w.carrier = &verbs_carrier
    lane.w.carried_by = link


cdef verbs_link *link_of(Lane lane) except NULL:
    if lane.w.carrier != &verbs_carrier:
        raise errors.InternalError("the lane is not carried by verbs")
    return <verbs_link *>lane.w.carried_by


def fault(Lane lane):
    """What broke the connection: (where, number, name, detail), or None; waits for a cause."""
    cdef verbs_link *link = link_of(lane)
    if link.broken:
        with nogil:
            verbs_explain(link, EXPLAIN_MS)
    return fault_of(link)


def hang_up(Lane lane):
    """Disconnect: nothing is written into the lane's memory any more."""
    cdef verbs_link *link = link_of(lane)
    with nogil:
        rdma_disconnect(link.id)


def inline_max(Lane lane):
    """The bytes that the device takes inline."""
    return link_of(lane).inline_max


def bare(Lane lane, const uint8_t[::1] data, uint32_t count):
    """Nanoseconds of bare round trips (verbs_bench.c), or None when the peer is lost."""
    cdef array.array samples = arrays.array("Q", bytes(8 * count))
    cdef uint64_t *out = <uint64_t *>samples.data.as_ulonglongs
    cdef uint32_t i
    cdef int lost
    ticks_calibrate()
    link_of(lane)
    with nogil:
        lost = verbs_bare(&lane.w, &data[0], <uint32_t>data.shape[0], count, out)
    for i in range(count):
        out[i] = ticks_to_ns(out[i])
    return None if lost else samples


def stream(Lane lane, uint32_t size, uint32_t depth, uint32_t count):
    """Nanoseconds that so many bare writes take, 0 when the peer is lost."""
    cdef uint64_t elapsed
    ticks_calibrate()
    link_of(lane)
    with nogil:
        elapsed = verbs_stream(&lane.w, size, depth, count)
    return ticks_to_ns(elapsed)


cdef class WorkerLanes:
    """The lanes of this process: they listen, and each serves the client that knows `secret`.

    Whoever owns it calls `step` when one of `filenos()` is readable.
    """

    cdef verbs_lane *lanes
    cdef ring_account *accounts
    cdef int count
    cdef int account_lines
    cdef int notice_fd
    cdef rdma_event_channel *events
    cdef rdma_cm_id *listener
    cdef Library library
    cdef bytes secret
    cdef readonly int port

    def __cinit__(self):
        self.notice_fd = -1

    def __init__(self, Library library, int rings_fd, uint64_t ring_bytes, int account_fd, cpus,
                 long hot_timeout_ms, host, bytes secret, feed=None, bint turns=False):
        """Without a library, each write is answered by a bare one (bench), or, as `feed` says,
        taken to a worker over the rings: "apart" (it has other processors) or "together".
        That one may answer that it is busy if it takes `turns` with others.

        Open a ring for each entry of `cpus`, as `_worker.WorkerLanes` does, register it with
        the device whose address is `host`, and listen there.

        Raises:
            Trouble: the step that failed.
        """
        cdef const char *what
        cdef int error, index, failed
        cdef verbs_trouble trouble
        cdef sockaddr_storage at
        cdef verbs_lane *one
        ticks_calibrate()
        self.library = library
        self.secret = secret
        address(&at, host, 0)
        self.lanes = <verbs_lane *>calloc(len(cpus), sizeof(verbs_lane))
        self.accounts = <ring_account *>mmap(
            NULL, 64 * len(cpus), PROT_READ | PROT_WRITE, MAP_SHARED, account_fd, 0
        )
        self.account_lines = len(cpus)
        if self.lanes is NULL or self.accounts == MAP_FAILED or len(secret) != SECRET_BYTES:
            raise MemoryError
        self.notice_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.events = rdma_create_event_channel()
        if self.events is NULL:
            raise Trouble("open an event channel of rdma_cm", errno, "", 0, "", 0)
        fcntl(self.events.fd, F_SETFL, fcntl(self.events.fd, F_GETFL) | O_NONBLOCK)
        if verbs_listen(self.events, <sockaddr *>&at, len(cpus), &self.listener, &trouble):
            raise trouble_of(&trouble)
        self.port = ntohs(rdma_get_src_port(self.listener))
        for index in range(len(cpus)):
            one = &self.lanes[index]
            error = ring_open(&one.lane.ring, rings_fd, index * ring_bytes, &what)
            if error:
                raise Trouble(what.decode(), error, "", 0, "", 0)
            self.count += 1
            with nogil:
                failed = verbs_prepare(&one.link, self.listener.verbs, &one.lane.ring, 1, &trouble)
            if failed:
                trouble.bytes *= len(cpus)
                raise trouble_of(&trouble)
            error = ring_guard(&one.lane.ring)
            if error:
                raise Trouble("protect guard pages", error, "", 0, "", 0)
            one.stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            one.notice_fd = self.notice_fd
            one.lane.account = &self.accounts[index]
            one.lane.functions = library.functions if library is not None else NULL
            one.lane.function_count = library.count if library is not None else 0
            one.lane.cpu = cpus[index]
            one.lane.loop = verbs_lane_loop if library is not None else verbs_bare_loop
            one.lane.wake = verbs_lane_wake
            if feed is not None:
                one.feed = verbs_feed_new(&one.lane.ring, feed == "together")
                if one.feed is NULL:
                    raise MemoryError
                one.feed.turns = turns
                one.lane.loop = verbs_feed_loop
                one.lane.wake = verbs_feed_wake
            one.lane.hot_ticks = (
                HOT_ALWAYS if hot_timeout_ms < 0 else ns_to_ticks(hot_timeout_ms * 1_000_000)
            )

    def filenos(self):
        """The descriptors to watch."""
        return self.events.fd, self.notice_fd

    def step(self):
        """Do what is to be done: answer who connects, take note of who has gone."""
        cdef rdma_cm_event *event
        cdef int kind, index
        while not rdma_get_cm_event(self.events, &event):
            kind = event.event
            if kind == RDMA_CM_EVENT_CONNECT_REQUEST:
                self.answer(event)
            else:
                if event.id.context is not NULL and kind != RDMA_CM_EVENT_ESTABLISHED:
                    rdma_disconnect(event.id)  # flushes what is posted, which ends its loop
                rdma_ack_cm_event(event)
        try:
            os.read(self.notice_fd, 8)
        except BlockingIOError:
            return
        for index in range(self.count):  # a loop has ended: its client is to hear of it
            if self.lanes[index].link.broken and self.lanes[index].link.id is not NULL:
                rdma_disconnect(self.lanes[index].link.id)

    cdef int answer(self, rdma_cm_event *event) except -1:
        cdef verbs_hello hello
        cdef verbs_refusal refusal
        cdef verbs_trouble trouble
        cdef rdma_cm_id *id = event.id
        cdef verbs_lane *one
        cdef int failed
        refusal.magic = VERBS_MAGIC
        refusal.version = VERBS_VERSION
        refusal.reason = 0
        memset(&trouble, 0, sizeof(trouble))
        memset(&hello, 0, sizeof(hello))
        if event.param.conn.private_data_len < sizeof(hello):
            refusal.reason = REFUSED_STRANGER
        else:
            memcpy(&hello, event.param.conn.private_data, sizeof(hello))
            refusal.reason = self.fault_with(&hello)
        rdma_ack_cm_event(event)
        id.context = NULL
        if not refusal.reason:
            one = &self.lanes[hello.outputs.lane]
            refusal.reason = REFUSED_QUEUES
            with nogil:
                failed = verbs_queue_pair(&one.link, id, &trouble)
                if not failed:
                    verbs_aim(&one.link, &hello.outputs)
                    failed = lane_start(&one.lane)  # first: who is accepted is served
                    if failed:
                        refusal.reason = REFUSED_THREAD
                        verbs_unpair(&one.link)  # for the next who comes
                    else:
                        failed = verbs_accept(&one.link, id, hello.outputs.lane, &trouble)
            if not failed:
                return 0
            if one.link.id is not NULL:  # it goes with its link, and its thread with the lane
                rdma_reject(id, &refusal, sizeof(refusal))
                return 0
        rdma_reject(id, &refusal, sizeof(refusal))
        rdma_destroy_id(id)
        return 0

    cdef uint16_t fault_with(self, const verbs_hello *hello):
        """Why this is not our client, or 0."""
        cdef verbs_link *link
        if hello.outputs.magic != VERBS_MAGIC:
            return REFUSED_STRANGER
        if hello.outputs.version != VERBS_VERSION:
            return REFUSED_VERSION
        # Unequal in time: the secret is random, and each guess costs a connection.
        if memcmp(hello.secret, <const char *>self.secret, SECRET_BYTES):
            return REFUSED_SECRET
        if hello.outputs.lane >= self.count:
            return REFUSED_LANE
        link = &self.lanes[hello.outputs.lane].link
        if link.id is not NULL:
            return REFUSED_TAKEN
        if hello.outputs.slots != link.slots or hello.outputs.slot_bytes != link.slot_bytes:
            return REFUSED_GEOMETRY
        return 0

    def faults(self):
        """What broke each lane's connection, None where it works."""
        return [fault_of(&self.lanes[index].link) for index in range(self.count)]

    def stop(self):
        """End the lanes; returns when their threads are gone and nothing is registered.

        Can be called twice.  What a function still does with its memory must be over.
        """
        cdef int index
        with nogil:
            for index in range(self.count):
                lane_stop(&self.lanes[index].lane)
                verbs_close(&self.lanes[index].link)
            if self.listener is not NULL:
                rdma_destroy_id(self.listener)
            if self.events is not NULL:
                rdma_destroy_event_channel(self.events)
        self.listener = NULL
        self.events = NULL

    def __dealloc__(self):
        cdef int index
        self.stop()
        for index in range(self.count):
            ring_close(&self.lanes[index].lane.ring)
            free(self.lanes[index].feed)
            if self.lanes[index].stop_fd > 0:
                os.close(self.lanes[index].stop_fd)
        if self.notice_fd >= 0:
            os.close(self.notice_fd)
        if self.accounts is not NULL and self.accounts != MAP_FAILED:
            munmap(self.accounts, 64 * self.account_lines)
        free(self.lanes)


include "account.pxi"
