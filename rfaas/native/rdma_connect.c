/* How two ends of a stream find each other, step by step as events come.  See rdma_stream.h.
 *
 *     who connects                          who listens
 *     resolve address, route
 *     queue pair, receives
 *     connect(stream_hello)     ------->    a stranger? reject(stream_refusal)
 *                                           queue pair, receives
 *     established               <-------    accept(stream_hello)
 *                               ------->    established: may send
 */
#define _GNU_SOURCE
#include "rdma_stream.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>

#define ACK_TIMEOUT 16      /* 4.096 us * 2^16 = 0.27 s, InfiniBand specification 9.7.6.1.3 */
#define RETRY_COUNT 6       /* so a peer that is gone is found out after some 2 s; 7, the most,
                             * is for ever to SoftRoCE (rxe_comp.c) */
/* The kernel looks at the end of a try, and not always before, whether a neighbour answered. */
#define ADDRESS_TRY_MS 50u
#define RNR_RETRY_COUNT 6   /* 7 would be for ever; receives run out only at a peer that cheats */

static int failed(rdma_stream *stream, const char *step, int error) {
    return rdma_stream_failed(stream, STREAM_AT_STEP, step, error, 0);
}

void rdma_stream_prepare(rdma_stream *stream) {
    stream->hello = (stream_hello){STREAM_MAGIC, STREAM_VERSION, STREAM_RECEIVES,
                                   STREAM_BUFFER_BYTES};
}

static struct rdma_conn_param parameters(const rdma_stream *stream) {
    return (struct rdma_conn_param){
        .private_data = &stream->hello,
        .private_data_len = sizeof stream->hello,
        .responder_resources = 1, /* one RDMA READ at a time, either way */
        .initiator_depth = 1,
        .retry_count = RETRY_COUNT,
        .rnr_retry_count = RNR_RETRY_COUNT,
    };
}

static int open_events(rdma_stream *stream) {
    stream->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (stream->epoll_fd < 0)
        return failed(stream, "open an epoll descriptor", errno);
    if (!(stream->events = rdma_create_event_channel()))
        return failed(stream, "open an event channel of rdma_cm", errno);
    const int fd = stream->events->fd;
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) ||
        epoll_ctl(stream->epoll_fd, EPOLL_CTL_ADD, fd, &event))
        return failed(stream, "set up an event channel of rdma_cm", errno);
    return 0;
}

static void set_ack_timeout(struct rdma_cm_id *id) {
    uint8_t ack_timeout = ACK_TIMEOUT; /* a kernel that does not know it has its own */
    rdma_set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &ack_timeout,
                    sizeof ack_timeout);
}

static int find_address(rdma_stream *stream, const struct sockaddr *from) {
    /* librdmacm takes them without const and does not write to them. */
    if (rdma_resolve_addr(stream->id, (struct sockaddr *)(uintptr_t)from,
                          (struct sockaddr *)&stream->to, (int)stream->patience_ms))
        return failed(stream, "resolve the address", errno);
    stream->waited_ms += stream->patience_ms;
    stream->patience_ms *= 2;
    return 0;
}

int rdma_stream_connect(rdma_stream *stream, const struct sockaddr *from,
                        const struct sockaddr_storage *to, uint32_t timeout_ms) {
    stream->state = STREAM_OPENING;
    stream->timeout_ms = timeout_ms;
    stream->patience_ms = ADDRESS_TRY_MS;
    stream->to = *to;
    if (open_events(stream))
        return -1;
    if (rdma_create_id(stream->events, &stream->id, stream, RDMA_PS_TCP))
        return failed(stream, "open an endpoint of rdma_cm", errno);
    return find_address(stream, from);
}

uint32_t rdma_stream_refusal(const stream_hello *hello) {
    if (hello->magic != STREAM_MAGIC)
        return STREAM_REFUSED_STRANGER;
    if (hello->version != STREAM_VERSION)
        return STREAM_REFUSED_VERSION;
    if (hello->receives < STREAM_PEER_RECEIVES_MIN ||
        hello->receives > STREAM_PEER_RECEIVES_MAX ||
        hello->buffer_bytes < STREAM_PEER_BUFFER_BYTES_MIN)
        return STREAM_REFUSED_GEOMETRY;
    return 0;
}

static void met(rdma_stream *stream, const stream_hello *hello) {
    stream->peer_receives = stream->credits = hello->receives;
    stream->peer_buffer_bytes = hello->buffer_bytes < STREAM_BUFFER_BYTES ? hello->buffer_bytes
                                                                          : STREAM_BUFFER_BYTES;
}

void rdma_stream_reject(struct rdma_cm_id *id, uint32_t reason) {
    const stream_refusal refusal = {STREAM_MAGIC, STREAM_VERSION, (uint16_t)reason};
    rdma_reject(id, &refusal, sizeof refusal);
    rdma_destroy_id(id);
}

int rdma_stream_accept(rdma_stream *stream, struct rdma_cm_id *id, const stream_hello *hello) {
    stream->state = STREAM_OPENING;
    if (open_events(stream)) {
        rdma_stream_reject(id, STREAM_REFUSED_QUEUES);
        return -1;
    }
    if (rdma_migrate_id(id, stream->events)) {
        failed(stream, "take a connection over", errno);
        rdma_stream_reject(id, STREAM_REFUSED_QUEUES);
        return -1;
    }
    stream->id = id;
    id->context = stream;
    set_ack_timeout(id);
    met(stream, hello);
    if (!rdma_stream_queues(stream)) {
        struct rdma_conn_param answer = parameters(stream);
        if (!rdma_accept(id, &answer))
            return 0;
        failed(stream, "accept", errno);
    }
    const stream_refusal refusal = {STREAM_MAGIC, STREAM_VERSION, STREAM_REFUSED_QUEUES};
    rdma_reject(id, &refusal, sizeof refusal);
    return -1;
}

int rdma_stream_listen(struct rdma_event_channel *events, const struct sockaddr *at, int backlog,
                       struct rdma_cm_id **id, stream_fault *fault) {
    const char *step = "open an endpoint of rdma_cm";
    int error = rdma_create_id(events, id, NULL, RDMA_PS_TCP);
    if (!error) {
        step = "bind to the address";
        error = rdma_bind_addr(*id, (struct sockaddr *)(uintptr_t)at);
    }
    if (!error && !(*id)->verbs) {
        step = "find the device of the address";
        errno = ENODEV;
        error = -1;
    }
    if (!error) {
        step = "listen";
        error = rdma_listen(*id, backlog);
    }
    if (error)
        *fault = (stream_fault){.where = STREAM_AT_STEP, .step = step, .status = errno};
    return error ? -1 : 0;
}

/* Events ----------------------------------------------------------------- */

static void found_address(rdma_stream *stream) {
    set_ack_timeout(stream->id);
    if (rdma_resolve_route(stream->id, (int)stream->timeout_ms))
        failed(stream, "find a route", errno);
}

static void found_route(rdma_stream *stream) {
    struct rdma_conn_param asked = parameters(stream);
    if (!rdma_stream_queues(stream) && rdma_connect(stream->id, &asked))
        failed(stream, "connect", errno);
}

static void established(rdma_stream *stream, const stream_hello *hello, int is_answer) {
    if (is_answer) { /* who accepted has met the other side before */
        const uint32_t reason = rdma_stream_refusal(hello);
        if (reason) {
            failed(stream, "understand the answer", EBADMSG);
            stream->fault.reason = reason;
            return;
        }
        met(stream, hello);
    }
    stream->state = STREAM_OPEN;
}

static void disconnected(rdma_stream *stream, const char *step, int event, int status) {
    if (stream->state != STREAM_OPEN) {
        rdma_stream_failed(stream, STREAM_AT_EVENT, step, event, status);
        return;
    }
    /* What the other side knows to have arrived is here; events of it come by another way. */
    if (rdma_stream_completions(stream))
        return;
    stream->state = STREAM_ENDED;
    rdma_disconnect(stream->id);
}

int rdma_stream_events(rdma_stream *stream) {
    struct rdma_cm_event *event;
    while (stream->state < STREAM_ENDED && !rdma_get_cm_event(stream->events, &event)) {
        const int kind = event->event, status = event->status;
        const struct rdma_conn_param *with = &event->param.conn;
        const int is_answer = !stream->peer_receives;
        stream_hello hello = {0};
        stream_refusal refusal = {0};
        if (with->private_data && kind == RDMA_CM_EVENT_ESTABLISHED &&
            with->private_data_len >= sizeof hello)
            memcpy(&hello, with->private_data, sizeof hello);
        if (with->private_data && kind == RDMA_CM_EVENT_REJECTED &&
            with->private_data_len >= sizeof refusal)
            memcpy(&refusal, with->private_data, sizeof refusal);
        rdma_ack_cm_event(event);
        switch (kind) {
        case RDMA_CM_EVENT_ADDR_RESOLVED:
            found_address(stream);
            break;
        case RDMA_CM_EVENT_ADDR_ERROR:
            if (stream->waited_ms < stream->timeout_ms && status == -ETIMEDOUT)
                find_address(stream, NULL); /* it is bound by the first try */
            else
                disconnected(stream, "resolve the address", kind, status);
            break;
        case RDMA_CM_EVENT_ROUTE_RESOLVED:
            found_route(stream);
            break;
        case RDMA_CM_EVENT_ESTABLISHED:
            established(stream, &hello, is_answer);
            break;
        case RDMA_CM_EVENT_DEVICE_REMOVAL: /* no farewell: the other side knows nothing of it */
            rdma_stream_failed(stream, STREAM_AT_EVENT, "keep the connection", kind, status);
            break;
        case RDMA_CM_EVENT_TIMEWAIT_EXIT:
        case RDMA_CM_EVENT_ADDR_CHANGE: /* the address moved; this connection may well live on */
            break;
        default:
            disconnected(stream, "connect", kind, status);
            if (stream->state == STREAM_BROKEN && refusal.magic == STREAM_MAGIC)
                stream->fault.reason = refusal.reason;
        }
    }
    return stream->state == STREAM_BROKEN ? -1 : 0;
}
