# A part of _verbs.pyx: counts by FETCH_AND_ADD (verbs_account.h).

cdef extern from "verbs_account.h" nogil:
    enum: ACCOUNT_MAGIC

    ctypedef struct account_hello:
        uint32_t magic
        uint16_t version
        uint8_t *secret

    ctypedef struct account_link:
        rdma_cm_id *id
        uint64_t *words
        uint32_t lanes

    int account_open(account_link *link, ibv_context *device, uint32_t lanes, int is_page,
                     verbs_trouble *trouble)
    int account_accept(account_link *link, rdma_cm_id *id, verbs_trouble *trouble)
    int account_connect(account_link *link, const sockaddr *to, uint32_t lanes,
                        const uint8_t *secret, uint64_t timeout_ns, verbs_trouble *trouble)
    void account_close(account_link *link)
    int account_has_atomics(ibv_context *device)
    int account_tell(account_link *link, const ring_account *lines, uint64_t timeout_ns)


cdef class AccountPage:
    """Counts of one worker, in memory that it adds to over RDMA; made by `AccountPages.page`."""

    cdef account_link link
    cdef readonly bytes secret
    cdef readonly bint is_told      # whether the worker has connected
    cdef bytes last                 # what it read when it was closed

    def read(self):
        """The lines, a copy; once it is closed, as they were then."""
        if self.link.words is NULL:
            return self.last
        # SAFETY: `words` has a whole number of pages, at least `lanes` lines.
        return (<char *>self.link.words)[:64 * self.link.lanes]

    def close(self):
        """Disconnect and let go of the memory.  Can be called twice."""
        self.last = self.read()
        with nogil:
            account_close(&self.link)

    def __dealloc__(self):
        account_close(&self.link)


cdef class AccountPages:
    """The executor's side: listens, and gives each worker a page of its own to add to.

    To be closed: connections of pages that live on need its event channel.  Whoever owns it
    calls `step` when `fileno()` is readable.
    """

    cdef rdma_event_channel *events
    cdef rdma_cm_id *listener
    cdef dict pages              # by secret, until they are closed
    cdef readonly int port
    cdef readonly bint has_atomics
    cdef readonly bint is_lost   # its device was taken away: to be closed, and made anew

    def __init__(self, host):
        """Listen at the device whose address is `host`.

        Raises:
            Trouble: the step that failed.
        """
        cdef sockaddr_storage at
        cdef verbs_trouble trouble
        self.pages = {}
        address(&at, host, 0)
        self.events = rdma_create_event_channel()
        if self.events is NULL:
            raise Trouble("open an event channel of rdma_cm", errno, "", 0, "", 0)
        fcntl(self.events.fd, F_SETFL, fcntl(self.events.fd, F_GETFL) | O_NONBLOCK)
        if verbs_listen(self.events, <sockaddr *>&at, 64, &self.listener, &trouble):
            raise trouble_of(&trouble)
        self.port = ntohs(rdma_get_src_port(self.listener))
        self.has_atomics = account_has_atomics(self.listener.verbs)

    def fileno(self):
        """The descriptor to watch."""
        return self.events.fd

    def page(self, uint32_t lanes):
        """A page for a worker of so many lanes.

        Raises:
            Trouble: the step that failed.
        """
        cdef AccountPage page = AccountPage()
        cdef verbs_trouble trouble
        if account_open(&page.link, self.listener.verbs, lanes, True, &trouble):
            raise trouble_of(&trouble)
        page.secret = os.urandom(SECRET_BYTES)
        self.pages[page.secret] = page
        return page

    def close_page(self, AccountPage page):
        """Forget it."""
        self.pages.pop(page.secret, None)
        page.close()

    def step(self):
        """Answer who connects; never waits."""
        cdef rdma_cm_event *event
        while not rdma_get_cm_event(self.events, &event):
            if event.event == RDMA_CM_EVENT_CONNECT_REQUEST:
                self.answer(event)
            else:
                self.is_lost |= (
                    event.event == RDMA_CM_EVENT_DEVICE_REMOVAL and event.id == self.listener
                )
                rdma_ack_cm_event(event)

    cdef int answer(self, rdma_cm_event *event) except -1:
        cdef account_hello hello
        cdef verbs_refusal refusal
        cdef verbs_trouble trouble
        cdef AccountPage page = None
        cdef rdma_cm_id *id = event.id
        refusal.magic = VERBS_MAGIC
        refusal.version = VERBS_VERSION
        refusal.reason = REFUSED_STRANGER
        memset(&trouble, 0, sizeof(trouble))
        memset(&hello, 0, sizeof(hello))
        if event.param.conn.private_data_len >= sizeof(hello):
            memcpy(&hello, event.param.conn.private_data, sizeof(hello))
            if hello.magic == ACCOUNT_MAGIC and hello.version == VERBS_VERSION:
                # A table's look-up tells nothing of a secret that is random and used once.
                page = self.pages.get((<char *>hello.secret)[:SECRET_BYTES])
                refusal.reason = REFUSED_SECRET
        rdma_ack_cm_event(event)
        id.context = NULL
        if page is not None and page.link.id is NULL:
            if not account_accept(&page.link, id, &trouble):
                page.is_told = True
                return 0
            refusal.reason = REFUSED_QUEUES
            rdma_reject(id, &refusal, sizeof(refusal))
            return 0  # `id` goes with its page
        rdma_reject(id, &refusal, sizeof(refusal))
        rdma_destroy_id(id)
        return 0

    def close(self):
        """Close all pages and the listener.  Can be called twice."""
        for page in self.pages.values():
            page.close()
        self.pages.clear()
        if self.listener is not NULL:
            rdma_destroy_id(self.listener)
        if self.events is not NULL:
            rdma_destroy_event_channel(self.events)
        self.listener = NULL
        self.events = NULL


cdef class Teller:
    """The worker's side, or its endpoint's: adds to the executor's page what lanes have counted."""

    cdef account_link link
    cdef ring_account *lines
    cdef size_t size

    def __init__(self, int account_fd, uint32_t lanes, host, port, const uint8_t[::1] secret,
                 timeout_s):
        """Connect; `account_fd` is the page on which this process's lanes count.

        Raises:
            Trouble: the step that failed.
        """
        cdef sockaddr_storage there
        cdef verbs_trouble trouble
        cdef uint64_t timeout_ns = <uint64_t>(timeout_s * 1e9)
        cdef int failed
        if len(secret) != SECRET_BYTES:
            raise errors.ProtocolError(f"a secret has {SECRET_BYTES} bytes, not {len(secret)}")
        address(&there, host, port)
        self.size = 64 * lanes
        self.lines = <ring_account *>mmap(NULL, self.size, PROT_READ, MAP_SHARED, account_fd, 0)
        if self.lines == MAP_FAILED:
            self.lines = NULL
            raise Trouble("map the accounting page", errno, "", 0, "", 0)
        with nogil:
            failed = account_connect(
                &self.link, <sockaddr *>&there, lanes, &secret[0], timeout_ns, &trouble
            )
        if failed:
            if trouble.error == EINTR:
                raise_it()
            raise trouble_of(&trouble)

    def tell(self, timeout_s):
        """Add what has grown and wait until it is there; False once the connection is broken."""
        cdef uint64_t timeout_ns = <uint64_t>(timeout_s * 1e9)
        cdef int failed
        with nogil:
            failed = account_tell(&self.link, self.lines, timeout_ns)
        return not failed

    def close(self):
        """Disconnect.  Can be called twice."""
        with nogil:
            account_close(&self.link)

    def __dealloc__(self):
        self.close()
        if self.lines is not NULL:
            munmap(self.lines, self.size)
