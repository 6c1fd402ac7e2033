# cython: language_level=3, boundscheck=False, wraparound=False
"""Streams of bytes over RDMA (rdma_stream.h), which carry control links.

Linked to librdmacm and libibverbs, as `_verbs` is and nothing else: a node
without them lacks this and no more.  Nothing here waits or decides; what went
wrong is told in numbers and steps, which `rfaas.control.rdma` puts into words.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

import os

STATES = {
    STREAM_NEW: "closed", STREAM_OPENING: "opening", STREAM_OPEN: "open", STREAM_ENDED: "ended",
    STREAM_BROKEN: "broken",
}
REFUSALS = {
    0: "", STREAM_REFUSED_STRANGER: "stranger", STREAM_REFUSED_VERSION: "version",
    STREAM_REFUSED_GEOMETRY: "geometry", STREAM_REFUSED_QUEUES: "queues",
}
PLACES = {
    STREAM_AT_STEP: "step", STREAM_AT_EVENT: "event", STREAM_AT_SEND: "send",
    STREAM_AT_RECEIVE: "receive", STREAM_AT_WIRE: "wire",
}
NUMBERS = {
    "STREAM_MAGIC": STREAM_MAGIC,
    "STREAM_VERSION": STREAM_VERSION,
    "STREAM_DATA": STREAM_DATA,
    "STREAM_CREDIT": STREAM_CREDIT,
    "STREAM_RECEIVES": STREAM_RECEIVES,
    "STREAM_SENDS": STREAM_SENDS,
    "STREAM_BUFFER_BYTES": STREAM_BUFFER_BYTES,
    "STREAM_BYTES": STREAM_BYTES,
    "STREAM_PEER_RECEIVES_MIN": STREAM_PEER_RECEIVES_MIN,
    "STREAM_PEER_RECEIVES_MAX": STREAM_PEER_RECEIVES_MAX,
    "STREAM_PEER_BUFFER_BYTES_MIN": STREAM_PEER_BUFFER_BYTES_MIN,
    "STREAM_REFUSED_STRANGER": STREAM_REFUSED_STRANGER,
    "STREAM_REFUSED_VERSION": STREAM_REFUSED_VERSION,
    "STREAM_REFUSED_GEOMETRY": STREAM_REFUSED_GEOMETRY,
    "STREAM_REFUSED_QUEUES": STREAM_REFUSED_QUEUES,
}


class StreamFault(Exception):
    """What broke a stream.

    `where` is one of PLACES; `step` what could not be done; `status` an errno, an event, a
    completion's status or what was received, by `where`; `text` the system's word for it;
    `detail` an event's status or a vendor's code; `refusal` one of REFUSALS; `port_down` our
    device's port, if it was not active when the stream broke, or 0.
    """

    def __init__(self, where, step, status, text, detail, refusal, port_down=0):
        super().__init__(where, step, status, text, detail, refusal)
        self.where = where
        self.step = step
        self.status = status
        self.text = text
        self.detail = detail
        self.refusal = refusal
        self.port_down = port_down


cdef object fault_of(const stream_fault *fault):
    cdef int status = fault.status
    if fault.where == STREAM_AT_EVENT:
        text = rdma_event_str(status).decode()
    elif fault.where in (STREAM_AT_SEND, STREAM_AT_RECEIVE):
        text = ibv_wc_status_str(status).decode()
    elif fault.where == STREAM_AT_STEP:
        text = os.strerror(status)
    else:
        text = "a message that is none of a link"
    step = fault.step.decode() if fault.step is not NULL else ""
    return StreamFault(
        PLACES.get(fault.where, ""), step, status, text, fault.detail,
        REFUSALS.get(fault.reason, "unknown"),
        fault.port_down,
    )


cdef int resolve(sockaddr_storage *out, host, port) except -1:
    cdef addrinfo hints
    cdef addrinfo *found = NULL
    cdef bytes node = host.encode(), service = str(port).encode()
    memset(&hints, 0, sizeof(hints))
    hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV
    if getaddrinfo(node, service, &hints, &found):
        raise ValueError(f"{host!r:.60} is no numeric address")
    memset(out, 0, sizeof(sockaddr_storage))
    memcpy(out, found.ai_addr, found.ai_addrlen)
    freeaddrinfo(found)
    return 0


cdef str host_of(const sockaddr *address):
    cdef char host[64]
    if getnameinfo(address, sizeof(sockaddr_storage), host, sizeof(host), NULL, 0, NI_NUMERICHOST):
        return ""
    return host.decode()


cdef class Stream:
    """One connection; see rdma_stream.h.  Made by `connect` and `Listener.accept`.

    For one thread at a time, which the GIL sees to: nothing here gives it away.
    """

    cdef rdma_stream s
    cdef ibv_mr *lent
    cdef const uint8_t[::1] lent_view
    cdef ibv_mr *target
    cdef void *target_memory
    cdef uint64_t target_bytes
    cdef uint32_t fetched_bytes

    def fileno(self):
        """Readable when `step` has something to do; -1 once closed."""
        return self.s.epoll_fd if self.s.state != STREAM_NEW else -1

    @property
    def state(self):
        """One of STATES."""
        return STATES[self.s.state]

    @property
    def fault(self):
        """What broke it, a StreamFault, or None."""
        return fault_of(&self.s.fault) if self.s.state == STREAM_BROKEN else None

    @property
    def credits(self):
        """How many receives of the other side may be used, and how many of ours it is owed."""
        return self.s.credits, self.s.owed

    @property
    def local_host(self):
        """The address of our end, "" where there is none yet."""
        return host_of(rdma_get_local_addr(self.s.id)) if self.s.id is not NULL else ""

    def step(self):
        """Take what has happened."""
        rdma_stream_step(&self.s)

    def send(self, const uint8_t[::1] data, bint step=True):
        """How many bytes there was room for: 0 is none now, -1 never more.

        With `step` what has happened is taken in before: not where another thread waits for it.
        """
        cdef uint64_t size = <uint64_t>data.shape[0]
        if step:
            rdma_stream_step(&self.s)
        return rdma_stream_send(&self.s, &data[0], size) if size else 0

    @property
    def has_room(self):
        """Whether `send` would take something."""
        return bool(rdma_stream_has_room(&self.s))

    @property
    def readable(self):
        """How many bytes `receive` would give."""
        return rdma_stream_readable(&self.s)

    def receive(self):
        """The bytes that came; b"" where none are there."""
        cdef uint64_t size = rdma_stream_readable(&self.s)
        cdef bytes out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
        # SAFETY: `out` has as many bytes as are readable, and nobody else has seen it.
        rdma_stream_read(&self.s, <uint8_t *>PyBytes_AS_STRING(out))
        return out

    @property
    def unsettled(self):
        """Whether something that was sent may not have arrived; then `step` will tell."""
        return bool(rdma_stream_unsettled(&self.s))

    def probe(self):
        """Have the NIC find out whether the other side is there; a later `step` tells."""
        rdma_stream_probe(&self.s)

    def lend(self, const uint8_t[::1] data):
        """Let the other side read `data`, until `take_back`: (address, key).

        Raises:
            OSError: it cannot be registered.
        """
        self.take_back()
        # SAFETY: `lent_view` holds the memory for as long as it is registered.
        self.lent = rdma_stream_register(
            &self.s, <void *>&data[0], <uint64_t>data.shape[0], 1
        ) if self.s.state == STREAM_OPEN else NULL
        if self.lent is NULL:
            raise OSError(errno, os.strerror(errno))
        self.lent_view = data
        return <uint64_t>&data[0], self.lent.rkey

    def take_back(self):
        """Nothing is lent any more.  Can be called twice."""
        if self.lent is not NULL:
            ibv_dereg_mr(self.lent)
            self.lent = NULL
        self.lent_view = None

    def fetch(self, uint64_t address, uint32_t key, uint32_t size, uint64_t size_max):
        """Begin to read what the other side lends; `fetching` until it is there.

        `size_max` is what is registered at the first time.

        Raises:
            OSError: the memory cannot be had.
        """
        if self.target is NULL:
            self._make_target(size_max)
        if size > self.target_bytes or self.s.reads:
            raise OSError(errno, "more than one read, or a larger one than there is room for")
        self.fetched_bytes = size
        rdma_stream_fetch(&self.s, self.target, address, key, size)

    def _make_target(self, uint64_t size):
        cdef void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)
        if memory == MAP_FAILED:
            raise OSError(errno, os.strerror(errno))
        self.target = rdma_stream_register(&self.s, memory, size, 0)
        if self.target is NULL:
            number = errno
            munmap(memory, size)
            raise OSError(number, os.strerror(number))
        self.target_memory = memory
        self.target_bytes = size

    @property
    def fetching(self):
        """Whether a fetch is not done."""
        return self.s.reads != 0 and self.s.state == STREAM_OPEN

    def fetched(self):
        """The bytes of the last fetch."""
        # SAFETY: `fetch` saw to it that they are no more than `target_bytes`.
        return PyBytes_FromStringAndSize(<char *>self.target_memory, self.fetched_bytes)

    def forget(self):
        """Give the memory of fetches back.  Can be called twice."""
        if self.target is not NULL:
            ibv_dereg_mr(self.target)
            munmap(self.target_memory, self.target_bytes)
            self.target = NULL

    def close(self):
        """Disconnect and give all back.  Can be called twice."""
        if self.s.state != STREAM_NEW:
            self.take_back()
            self.forget()
            rdma_stream_close(&self.s)

    def __dealloc__(self):
        if self.lent is not NULL:
            ibv_dereg_mr(self.lent)
        if self.target is not NULL:
            ibv_dereg_mr(self.target)
            munmap(self.target_memory, self.target_bytes)
        if self.s.state != STREAM_NEW:
            rdma_stream_close(&self.s)


cdef int prepare(Stream stream, const uint8_t[::1] hello) except -1:
    """Say what is true, or, for tests of the other side, what `hello` says in its place."""
    rdma_stream_prepare(&stream.s)
    if hello is not None:
        if <size_t>hello.shape[0] != sizeof(stream_hello):
            raise ValueError(f"a hello has {sizeof(stream_hello)} bytes")
        memcpy(&stream.s.hello, &hello[0], sizeof(stream_hello))
    return 0


def connect(source, host, port, uint32_t timeout_ms, const uint8_t[::1] hello=None):
    """Begin to connect: a Stream that is "opening", or "broken".

    Args:
        source: numeric address of the device to use; "": what the kernel's routes say.
        host, port: numeric, where somebody listens.
        timeout_ms: for each step.
        hello: for tests, what to say in place of the truth.
    """
    cdef sockaddr_storage here, there
    cdef Stream stream = Stream()
    prepare(stream, hello)
    if source:
        resolve(&here, source, 0)
    resolve(&there, host, port)
    rdma_stream_connect(
        &stream.s, <sockaddr *>&here if source else NULL, &there, timeout_ms
    )
    return stream


cdef class Listener:
    """Who waits for connections at an address of an RDMA device."""

    cdef rdma_event_channel *events
    cdef rdma_cm_id *id
    cdef str host
    cdef int backlog
    cdef readonly bint is_lost  # its device was taken away, and nobody comes any more

    def __init__(self, host, port, int backlog):
        """Listen at a numeric address; port 0 is any.

        Raises:
            StreamFault: the step that failed.
        """
        self.host = host
        self.backlog = backlog
        self.events = rdma_create_event_channel()
        if self.events is NULL:
            text = os.strerror(errno)
            raise StreamFault("step", "open an event channel of rdma_cm", errno, text, 0, "")
        fcntl(self.events.fd, F_SETFL, fcntl(self.events.fd, F_GETFL) | O_NONBLOCK)
        self.listen(port)

    cdef int listen(self, port) except -1:
        cdef sockaddr_storage at
        cdef stream_fault fault
        resolve(&at, self.host, port)
        memset(&fault, 0, sizeof(fault))
        if rdma_stream_listen(self.events, <sockaddr *>&at, self.backlog, &self.id, &fault):
            if self.id is not NULL:
                rdma_destroy_id(self.id)
                self.id = NULL
            raise fault_of(&fault)
        return 0

    def again(self, port):
        """Listen anew, if it `is_lost`: at the same address, by the same descriptor.

        Raises:
            StreamFault: the step that failed; it can be tried again.
        """
        if self.id is not NULL:
            rdma_destroy_id(self.id)
            self.id = NULL
        self.listen(port)
        self.is_lost = False

    @property
    def port(self):
        """The port that it listens at."""
        return ntohs(rdma_get_src_port(self.id)) if self.id is not NULL else 0

    def fileno(self):
        """Readable when `accept` has something to do; -1 once closed."""
        return self.events.fd if self.events is not NULL else -1

    def accept(self, const uint8_t[::1] answer=None):
        """Who has connected: a Stream, the refusal (one of REFUSALS) of one, None for nobody.

        `answer` is as `hello` in `connect`.
        """
        cdef rdma_cm_event *event
        cdef stream_hello hello
        cdef rdma_cm_id *id
        cdef uint32_t reason
        cdef Stream stream
        while self.events is not NULL and not rdma_get_cm_event(self.events, &event):
            if event.event != RDMA_CM_EVENT_CONNECT_REQUEST:
                self.is_lost |= event.event == RDMA_CM_EVENT_DEVICE_REMOVAL and event.id == self.id
                rdma_ack_cm_event(event)
                continue
            id = event.id
            memset(&hello, 0, sizeof(hello))
            # SAFETY: private data lives until the event is acknowledged; what is too short is
            # none of ours, and stays zeros.
            if event.param.conn.private_data_len >= sizeof(hello):
                memcpy(&hello, event.param.conn.private_data, sizeof(hello))
            rdma_ack_cm_event(event)
            reason = rdma_stream_refusal(&hello)
            if reason:
                rdma_stream_reject(id, reason)
                return REFUSALS[reason]
            stream = Stream()
            prepare(stream, answer)
            rdma_stream_accept(&stream.s, id, &hello)
            return stream
        return None

    def close(self):
        """Listen no more.  Can be called twice."""
        if self.id is not NULL:
            rdma_destroy_id(self.id)
            self.id = NULL
        if self.events is not NULL:
            rdma_destroy_event_channel(self.events)
            self.events = NULL

    def __dealloc__(self):
        if self.id is not NULL:
            rdma_destroy_id(self.id)
        if self.events is not NULL:
            rdma_destroy_event_channel(self.events)
