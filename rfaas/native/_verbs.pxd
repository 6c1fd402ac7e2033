# What _verbs.pyx takes from the system, librdmacm, and the C files beside it.
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

from rfaas.native._window cimport ring_map, window, window_carrier
from rfaas.native._worker cimport lane_function

cdef extern from "<fcntl.h>" nogil:
    int fcntl(int fd, int command, ...)
    int F_GETFL, F_SETFL, O_NONBLOCK

cdef extern from "<netdb.h>" nogil:
    ctypedef unsigned socklen_t
    struct sockaddr:
        pass
    struct sockaddr_storage:
        pass
    struct addrinfo:
        int ai_flags
        socklen_t ai_addrlen
        sockaddr *ai_addr
    int AI_NUMERICHOST, AI_NUMERICSERV
    int getaddrinfo(const char *node, const char *service, const addrinfo *hints, addrinfo **out)
    void freeaddrinfo(addrinfo *list)

cdef extern from "<arpa/inet.h>" nogil:
    uint16_t ntohs(uint16_t value)

cdef extern from "<sys/mman.h>" nogil:
    int PROT_READ, PROT_WRITE, MAP_SHARED
    void *MAP_FAILED
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t length)

cdef extern from "<rdma/rdma_cma.h>" nogil:
    struct ibv_context:
        pass

    struct rdma_conn_param:
        const void *private_data
        uint8_t private_data_len

    union rdma_event_param "":
        rdma_conn_param conn

    struct rdma_cm_id:
        ibv_context *verbs
        void *context

    struct rdma_event_channel:
        int fd

    struct rdma_cm_event:
        rdma_cm_id *id
        int event
        rdma_event_param param

    enum: RDMA_CM_EVENT_CONNECT_REQUEST, RDMA_CM_EVENT_ESTABLISHED, RDMA_CM_EVENT_TIMEWAIT_EXIT
    rdma_event_channel *rdma_create_event_channel()
    void rdma_destroy_event_channel(rdma_event_channel *channel)
    int rdma_get_cm_event(rdma_event_channel *channel, rdma_cm_event **event)
    int rdma_ack_cm_event(rdma_cm_event *event)
    int rdma_destroy_id(rdma_cm_id *id)
    int rdma_reject(rdma_cm_id *id, const void *private_data, uint8_t length)
    int rdma_disconnect(rdma_cm_id *id)
    uint16_t rdma_get_src_port(rdma_cm_id *id)
    const char *rdma_event_str(int event)
    const char *ibv_wc_status_str(int status)
    const char *ibv_port_state_str(int state)

cdef extern from "verbs_window.h" nogil:
    const window_carrier verbs_carrier

cdef extern from "verbs_feed.h" nogil:
    struct verbs_feed:
        int turns
        pass
    verbs_feed *verbs_feed_new(const ring_map *ring, int shares)

cdef extern from "verbs_lane.h" nogil:
    enum: SECRET_BYTES, VERBS_MAGIC, VERBS_VERSION
    enum: FAULT_NONE, FAULT_SEND, FAULT_RECEIVE, FAULT_POST, FAULT_EVENT, FAULT_PROTOCOL
    enum: FAULT_PORT, FAULT_WORKER
    enum: REFUSED_STRANGER, REFUSED_VERSION, REFUSED_SECRET, REFUSED_LANE, REFUSED_GEOMETRY
    enum: REFUSED_TAKEN, REFUSED_QUEUES
    uint64_t HOT_ALWAYS

    ctypedef struct verbs_window:
        uint32_t magic
        uint16_t version
        uint16_t lane
        uint32_t slots
        uint32_t slot_bytes

    ctypedef struct verbs_hello:
        verbs_window outputs
        uint8_t *secret

    ctypedef struct verbs_refusal:
        uint32_t magic
        uint16_t version
        uint16_t reason

    ctypedef struct verbs_fault:
        uint32_t where
        int32_t status
        int32_t detail

    ctypedef struct verbs_trouble:
        const char *step
        int error
        int event
        int status
        uint32_t reason
        uint64_t bytes
        uint32_t tries

    ctypedef struct verbs_link:
        uint32_t inline_max
        uint32_t broken
        verbs_fault fault
        rdma_cm_id *id
        uint32_t slots
        uint32_t slot_bytes

    ctypedef struct ring_account:
        pass

    ctypedef struct worker_lane:
        ring_map ring
        ring_account *account
        const lane_function *functions
        uint32_t function_count
        uint64_t hot_ticks
        int cpu
        void (*loop)(worker_lane *lane) noexcept nogil
        void (*wake)(worker_lane *lane) noexcept nogil

    ctypedef struct verbs_lane:
        worker_lane lane
        verbs_link link
        int stop_fd
        int notice_fd
        verbs_feed *feed

    void verbs_lane_loop(worker_lane *lane)
    void verbs_bare_loop(worker_lane *lane)
    void verbs_feed_loop(worker_lane *lane)
    void verbs_feed_wake(worker_lane *lane)
    int verbs_bare(window *w, const uint8_t *data, uint32_t size, uint32_t count,
                   uint64_t *samples)
    uint64_t verbs_stream(window *w, uint32_t size, uint32_t depth, uint32_t count)
    void verbs_lane_wake(worker_lane *lane)
    int lane_start(worker_lane *lane)
    void lane_stop(worker_lane *lane)
    int ring_open(ring_map *ring, int fd, uint64_t offset, const char **what)
    int ring_guard(const ring_map *ring)
    void ring_close(ring_map *ring)
    int verbs_prepare(verbs_link *link, ibv_context *device, const ring_map *ring,
                      int remote_inputs, verbs_trouble *trouble)
    int verbs_locks_always
    int (*verbs_interrupted)() noexcept nogil
    int verbs_queue_pair(verbs_link *link, rdma_cm_id *id, verbs_trouble *trouble)
    void verbs_aim(verbs_link *link, const verbs_window *window)
    void verbs_close(verbs_link *link)
    void verbs_explain(verbs_link *link, int patience_ms)
    int verbs_connect(verbs_link *link, const ring_map *ring, const sockaddr *from_,
                      const sockaddr *to, uint16_t lane, const uint8_t *secret,
                      uint64_t timeout_ns, verbs_trouble *trouble)
    int verbs_listen(rdma_event_channel *events, const sockaddr *at, int backlog,
                     rdma_cm_id **id, verbs_trouble *trouble)
    int verbs_accept(verbs_link *link, rdma_cm_id *id, uint16_t lane, verbs_trouble *trouble)
