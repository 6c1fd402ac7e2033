# What _rdma_stream.pyx takes from the system, librdmacm, and rdma_stream.h.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

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
    int AI_NUMERICHOST, AI_NUMERICSERV, NI_NUMERICHOST
    int getaddrinfo(const char *node, const char *service, const addrinfo *hints, addrinfo **out)
    void freeaddrinfo(addrinfo *list)
    int getnameinfo(const sockaddr *address, socklen_t length, char *host, socklen_t host_length,
                    char *service, socklen_t service_length, int flags)

cdef extern from "<arpa/inet.h>" nogil:
    uint16_t ntohs(uint16_t value)

cdef extern from "<sys/mman.h>" nogil:
    int PROT_READ, PROT_WRITE, MAP_SHARED, MAP_ANONYMOUS
    void *MAP_FAILED
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t length)

cdef extern from "<rdma/rdma_cma.h>" nogil:
    struct ibv_mr:
        uint32_t rkey

    struct rdma_conn_param:
        const void *private_data
        uint8_t private_data_len

    union rdma_event_param "":
        rdma_conn_param conn

    struct rdma_cm_id:
        pass

    struct rdma_event_channel:
        int fd

    struct rdma_cm_event:
        rdma_cm_id *id
        int event
        rdma_event_param param

    enum: RDMA_CM_EVENT_CONNECT_REQUEST, RDMA_CM_EVENT_DEVICE_REMOVAL
    rdma_event_channel *rdma_create_event_channel()
    void rdma_destroy_event_channel(rdma_event_channel *channel)
    int rdma_get_cm_event(rdma_event_channel *channel, rdma_cm_event **event)
    int rdma_ack_cm_event(rdma_cm_event *event)
    int rdma_destroy_id(rdma_cm_id *id)
    uint16_t rdma_get_src_port(rdma_cm_id *id)
    sockaddr *rdma_get_local_addr(rdma_cm_id *id)
    const char *rdma_event_str(int event)
    const char *ibv_wc_status_str(int status)
    int ibv_dereg_mr(ibv_mr *mr)

cdef extern from "rdma_stream.h" nogil:
    enum: STREAM_MAGIC, STREAM_VERSION, STREAM_RECEIVES, STREAM_SENDS, STREAM_BUFFER_BYTES
    enum: STREAM_BYTES, STREAM_PEER_RECEIVES_MIN, STREAM_PEER_RECEIVES_MAX
    enum: STREAM_PEER_BUFFER_BYTES_MIN
    enum: STREAM_DATA, STREAM_CREDIT
    enum: STREAM_REFUSED_STRANGER, STREAM_REFUSED_VERSION, STREAM_REFUSED_GEOMETRY
    enum: STREAM_REFUSED_QUEUES
    enum: STREAM_NEW, STREAM_OPENING, STREAM_OPEN, STREAM_ENDED, STREAM_BROKEN
    enum: STREAM_AT_STEP, STREAM_AT_EVENT, STREAM_AT_SEND, STREAM_AT_RECEIVE, STREAM_AT_WIRE

    ctypedef struct stream_hello:
        uint32_t magic

    ctypedef struct stream_fault:
        uint32_t where
        const char *step
        int status
        int detail
        uint32_t reason
        uint32_t port_down

    ctypedef struct rdma_stream:
        int epoll_fd
        uint32_t state
        uint32_t credits
        uint32_t owed
        uint32_t reads
        stream_hello hello
        stream_fault fault
        rdma_cm_id *id

    void rdma_stream_prepare(rdma_stream *stream)
    int rdma_stream_connect(rdma_stream *stream, const sockaddr *source,
                            const sockaddr_storage *to, uint32_t timeout_ms)
    int rdma_stream_accept(rdma_stream *stream, rdma_cm_id *id, const stream_hello *hello)
    uint32_t rdma_stream_refusal(const stream_hello *hello)
    void rdma_stream_reject(rdma_cm_id *id, uint32_t reason)
    int rdma_stream_listen(rdma_event_channel *events, const sockaddr *at, int backlog,
                           rdma_cm_id **id, stream_fault *fault)
    int rdma_stream_step(rdma_stream *stream)
    int64_t rdma_stream_send(rdma_stream *stream, const uint8_t *data, uint64_t size)
    uint64_t rdma_stream_readable(const rdma_stream *stream)
    int rdma_stream_read(rdma_stream *stream, uint8_t *out)
    int rdma_stream_has_room(const rdma_stream *stream)
    int rdma_stream_unsettled(rdma_stream *stream)
    int rdma_stream_probe(rdma_stream *stream)
    int rdma_stream_fetch(rdma_stream *stream, ibv_mr *to, uint64_t address, uint32_t key,
                          uint32_t size)
    ibv_mr *rdma_stream_register(rdma_stream *stream, void *at, uint64_t size, int is_lent)
    void rdma_stream_close(rdma_stream *stream)
