/* Queues, credits and bytes of a stream.  See rdma_stream.h. */
#define _GNU_SOURCE
#include "rdma_stream.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <unistd.h>

#define SEND_DEPTH (STREAM_SENDS + 2u) /* a READ and a probe come on top */
#define OWED_MAX (STREAM_RECEIVES / 2) /* then it is told, with data or without */
#define BATCH 8

_Static_assert(STREAM_RECEIVES >= 2 * 2, "half of the receives are more than the reserved one");
_Static_assert(STREAM_RECEIVES <= 0xffff && STREAM_BUFFER_BYTES <= 0xffff, "16 bits each");
_Static_assert((STREAM_RECEIVES & (STREAM_RECEIVES - 1)) == 0, "an index wraps with 2^32");
_Static_assert((STREAM_SENDS & (STREAM_SENDS - 1)) == 0, "an index wraps with 2^32");
_Static_assert(STREAM_BYTES % 4096 == 0, "whole pages");
_Static_assert(sizeof(stream_hello) == 12 && sizeof(stream_refusal) == 8, "as in link_wire.py");

/* wr_id of what is in the send queue and is no send. */
enum { ID_SEND = 0, ID_READ = 1, ID_PROBE = 2 };

/* The port of a connection, if it is not active; 0: it is, or there is none. */
static uint32_t port_down(const rdma_stream *stream) {
    const struct rdma_cm_id *id = stream->id;
    struct ibv_port_attr port;
    return id && id->verbs && id->port_num && !ibv_query_port(id->verbs, id->port_num, &port) &&
                   port.state != IBV_PORT_ACTIVE
               ? id->port_num
               : 0;
}

int rdma_stream_failed(rdma_stream *stream, uint32_t where, const char *step, int status,
                       int detail) {
    if (stream->state != STREAM_BROKEN) { /* the first thing counts */
        stream->fault = (stream_fault){.where = where, .step = step, .status = status,
                                       .detail = detail};
        if (where != STREAM_AT_WIRE) /* looked at now: it may be up again when somebody asks */
            stream->fault.port_down = port_down(stream);
        stream->state = STREAM_BROKEN;
    }
    return -1;
}

static int failed(rdma_stream *stream, const char *step, int error) {
    return rdma_stream_failed(stream, STREAM_AT_STEP, step, error, 0);
}

static int post_receive(rdma_stream *stream, uint32_t index) {
    struct ibv_sge sge = {(uintptr_t)(stream->memory + index * STREAM_BUFFER_BYTES),
                          STREAM_BUFFER_BYTES, stream->mr->lkey};
    struct ibv_recv_wr wr = {.wr_id = index, .sg_list = &sge, .num_sge = 1}, *bad;
    const int error = ibv_post_recv(stream->id->qp, &wr, &bad);
    return error ? failed(stream, "post a receive", error) : 0;
}

static int watch(rdma_stream *stream, int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    return epoll_ctl(stream->epoll_fd, EPOLL_CTL_ADD, fd, &event);
}

int rdma_stream_queues(rdma_stream *stream) {
    struct ibv_context *device = stream->id->verbs;
    struct ibv_qp_init_attr attributes;
    /* Shared, so that a fork of this process takes no copy of pages that the NIC writes. */
    stream->memory = mmap(NULL, STREAM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                          -1, 0);
    if (stream->memory == MAP_FAILED) {
        stream->memory = NULL;
        return failed(stream, "find memory", errno);
    }
    /* A protection domain of its own: a key of this connection opens nothing over another. */
    if (!(stream->pd = ibv_alloc_pd(device)))
        return failed(stream, "open a protection domain", errno);
    stream->mr = ibv_reg_mr(stream->pd, stream->memory, STREAM_BYTES, IBV_ACCESS_LOCAL_WRITE);
    if (!stream->mr)
        return failed(stream, "register the link's memory", errno);
    if (!(stream->channel = ibv_create_comp_channel(device)))
        return failed(stream, "open a completion channel", errno);
    const int fd = stream->channel->fd;
    if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) || watch(stream, fd))
        return failed(stream, "set up a completion channel", errno);
    stream->receive_cq = ibv_create_cq(device, STREAM_RECEIVES, NULL, stream->channel, 0);
    stream->send_cq = ibv_create_cq(device, SEND_DEPTH, NULL, stream->channel, 0);
    if (!stream->receive_cq || !stream->send_cq)
        return failed(stream, "create a completion queue", errno);
    attributes = (struct ibv_qp_init_attr){
        .send_cq = stream->send_cq,
        .recv_cq = stream->receive_cq,
        .qp_type = IBV_QPT_RC,
        .sq_sig_all = 1,
        .cap = {.max_send_wr = SEND_DEPTH, .max_recv_wr = STREAM_RECEIVES, .max_send_sge = 1,
                .max_recv_sge = 1},
    };
    if (rdma_create_qp(stream->id, stream->pd, &attributes))
        return failed(stream, "create a queue pair", errno);
    for (uint32_t index = 0; index < STREAM_RECEIVES; index++)
        if (post_receive(stream, index))
            return -1;
    const int error = ibv_req_notify_cq(stream->receive_cq, 0);
    return error ? failed(stream, "ask for completion events", error) : 0;
}

/* Sending ---------------------------------------------------------------- */

static int post(rdma_stream *stream, uint32_t kind, uint32_t size) {
    const uint32_t slot = STREAM_RECEIVES + stream->posted % STREAM_SENDS;
    struct ibv_sge sge = {(uintptr_t)(stream->memory + slot * STREAM_BUFFER_BYTES), size,
                          stream->mr->lkey};
    struct ibv_send_wr wr = {
        .wr_id = ID_SEND,
        .sg_list = &sge,
        .num_sge = size != 0,
        .opcode = IBV_WR_SEND_WITH_IMM,
        .imm_data = htobe32(kind << 16 | stream->owed),
    }, *bad;
    const int error = ibv_post_send(stream->id->qp, &wr, &bad);
    if (error)
        return failed(stream, "post a send", error);
    stream->posted++;
    stream->credits--;
    stream->owed = 0;
    return 0;
}

static int reap(rdma_stream *stream) {
    struct ibv_wc done[BATCH];
    int count;
    while ((count = ibv_poll_cq(stream->send_cq, BATCH, done)) > 0)
        for (int i = 0; i < count; i++) {
            if (done[i].status != IBV_WC_SUCCESS) {
                /* After the end, what was on its way is flushed: that is no news. */
                if (stream->state != STREAM_ENDED)
                    rdma_stream_failed(stream, STREAM_AT_SEND, "", (int)done[i].status,
                                       (int)done[i].vendor_err);
                return -1;
            }
            if (done[i].wr_id == ID_READ)
                stream->reads = 0;
            else if (done[i].wr_id == ID_PROBE)
                stream->probes = 0;
            else
                stream->done++;
        }
    return count < 0 ? failed(stream, "poll for sends", EIO) : 0;
}

/* Take completions, and have the next one be an event. */
static int reap_and_watch(rdma_stream *stream) {
    stream->wants_room = 1;
    const int error = ibv_req_notify_cq(stream->send_cq, 0);
    if (error)
        return failed(stream, "ask for completion events", error);
    return reap(stream); /* what came before that is none */
}

static int slot_is_free(const rdma_stream *stream) {
    return stream->posted - stream->done < STREAM_SENDS;
}

static int tell_credits(rdma_stream *stream) {
    if (stream->state != STREAM_OPEN || stream->owed < OWED_MAX || !stream->credits)
        return 0;
    if (!slot_is_free(stream) && (reap_and_watch(stream) || !slot_is_free(stream)))
        return stream->state == STREAM_BROKEN ? -1 : 0; /* the completion brings us back here */
    return post(stream, STREAM_CREDIT, 0);
}

int rdma_stream_has_room(const rdma_stream *stream) {
    return stream->state == STREAM_OPEN && stream->credits > 1 && slot_is_free(stream);
}

int64_t rdma_stream_send(rdma_stream *stream, const uint8_t *data, uint64_t size) {
    uint64_t taken = 0;
    if (stream->state == STREAM_NEW || stream->state > STREAM_OPEN)
        return -1;
    while (taken < size) {
        if (stream->state == STREAM_OPEN && !slot_is_free(stream) && reap_and_watch(stream))
            return -1;
        if (!rdma_stream_has_room(stream))
            break;
        uint64_t part = size - taken;
        if (part > stream->peer_buffer_bytes)
            part = stream->peer_buffer_bytes;
        const uint32_t slot = STREAM_RECEIVES + stream->posted % STREAM_SENDS;
        memcpy(stream->memory + slot * STREAM_BUFFER_BYTES, data + taken, part);
        if (post(stream, STREAM_DATA, (uint32_t)part))
            return -1;
        taken += part;
    }
    return (int64_t)taken;
}

int rdma_stream_unsettled(rdma_stream *stream) {
    if (stream->state != STREAM_OPEN || stream->posted == stream->done)
        return 0;
    return !reap_and_watch(stream) && stream->posted != stream->done;
}

int rdma_stream_probe(rdma_stream *stream) {
    struct ibv_send_wr wr = {.wr_id = ID_PROBE, .opcode = IBV_WR_RDMA_WRITE}, *bad;
    if (stream->state != STREAM_OPEN || stream->probes || stream->posted != stream->done)
        return 0; /* what is on its way finds it out as well */
    const int error = ibv_post_send(stream->id->qp, &wr, &bad);
    if (error)
        return failed(stream, "post a probe", error);
    stream->probes = 1;
    return reap_and_watch(stream);
}

int rdma_stream_fetch(rdma_stream *stream, struct ibv_mr *to, uint64_t address, uint32_t key,
                      uint32_t size) {
    struct ibv_sge sge = {(uintptr_t)to->addr, size, to->lkey};
    struct ibv_send_wr wr = {
        .wr_id = ID_READ,
        .sg_list = &sge,
        .num_sge = 1,
        .opcode = IBV_WR_RDMA_READ,
        .wr.rdma = {address, key},
    }, *bad;
    if (stream->state != STREAM_OPEN || stream->reads)
        return failed(stream, "read the other side's memory", EBUSY);
    const int error = ibv_post_send(stream->id->qp, &wr, &bad);
    if (error)
        return failed(stream, "post a read", error);
    stream->reads = 1;
    return reap_and_watch(stream);
}

/* Receiving -------------------------------------------------------------- */

static int take_message(rdma_stream *stream, const struct ibv_wc *message) {
    const uint32_t imm = be32toh(message->imm_data), kind = imm >> 16;
    if (message->opcode != IBV_WC_RECV || !(message->wc_flags & IBV_WC_WITH_IMM) ||
        (kind != STREAM_DATA && kind != STREAM_CREDIT) ||
        (kind == STREAM_DATA) != (message->byte_len != 0))
        return rdma_stream_failed(stream, STREAM_AT_WIRE, "a message", (int)imm,
                                  (int)message->byte_len);
    stream->credits += imm & 0xffff;
    if (stream->credits > stream->peer_receives)
        return rdma_stream_failed(stream, STREAM_AT_WIRE, "more credits than receives", (int)imm,
                                  (int)stream->credits);
    if (kind == STREAM_CREDIT) {
        stream->owed++;
        return post_receive(stream, (uint32_t)message->wr_id);
    }
    const uint32_t at = stream->arrived++ % STREAM_RECEIVES;
    stream->buffer[at] = (uint16_t)message->wr_id;
    stream->size[at] = (uint16_t)message->byte_len;
    return 0;
}

static int take_messages(rdma_stream *stream) {
    struct ibv_wc messages[BATCH];
    int count;
    while ((count = ibv_poll_cq(stream->receive_cq, BATCH, messages)) > 0)
        for (int i = 0; i < count; i++) {
            if (messages[i].status == IBV_WC_WR_FLUSH_ERR) {
                /* A consequence: what broke the connection says more, if it was no farewell. */
                if (!reap(stream) && stream->state != STREAM_ENDED)
                    rdma_stream_failed(stream, STREAM_AT_RECEIVE, "", IBV_WC_WR_FLUSH_ERR,
                                       (int)messages[i].vendor_err);
                return 0;
            }
            if (messages[i].status != IBV_WC_SUCCESS)
                return rdma_stream_failed(stream, STREAM_AT_RECEIVE, "", (int)messages[i].status,
                                          (int)messages[i].vendor_err);
            if (take_message(stream, &messages[i]))
                return -1;
        }
    return count < 0 ? failed(stream, "poll for messages", EIO) : 0;
}

int rdma_stream_completions(rdma_stream *stream) {
    struct ibv_cq *cq;
    void *context;
    int error = 0;
    while (!ibv_get_cq_event(stream->channel, &cq, &context)) {
        ibv_ack_cq_events(cq, 1);
        if (cq == stream->receive_cq)
            error = ibv_req_notify_cq(cq, 0);
        else
            stream->wants_room = 0;
    }
    if (error)
        return failed(stream, "ask for completion events", error);
    if (take_messages(stream) || reap(stream))
        return -1;
    /* What completed may have been a READ, and who waits for room waits for the sends behind it. */
    if (!stream->wants_room && (stream->reads || stream->probes || !slot_is_free(stream)) &&
        reap_and_watch(stream))
        return -1;
    return 0;
}

int rdma_stream_step(rdma_stream *stream) {
    if (stream->state == STREAM_BROKEN || stream->state == STREAM_NEW)
        return -1;
    if (stream->channel && stream->state < STREAM_ENDED)
        rdma_stream_completions(stream);
    if (stream->state < STREAM_ENDED)
        rdma_stream_events(stream);
    if (stream->state == STREAM_OPEN)
        tell_credits(stream);
    return stream->state == STREAM_BROKEN ? -1 : 0;
}

uint64_t rdma_stream_readable(const rdma_stream *stream) {
    uint64_t bytes = 0;
    for (uint32_t at = stream->read; at != stream->arrived; at++)
        bytes += stream->size[at % STREAM_RECEIVES];
    return bytes;
}

int rdma_stream_read(rdma_stream *stream, uint8_t *out) {
    while (stream->read != stream->arrived) {
        const uint32_t at = stream->read % STREAM_RECEIVES, index = stream->buffer[at];
        memcpy(out, stream->memory + index * STREAM_BUFFER_BYTES, stream->size[at]);
        out += stream->size[at];
        stream->read++;
        if (stream->state > STREAM_OPEN)
            continue; /* nothing comes any more */
        if (post_receive(stream, index))
            return -1;
        stream->owed++;
    }
    return tell_credits(stream);
}

struct ibv_mr *rdma_stream_register(rdma_stream *stream, void *at, uint64_t size, int is_lent) {
    return ibv_reg_mr(stream->pd, at, size, is_lent ? IBV_ACCESS_REMOTE_READ
                                                    : IBV_ACCESS_LOCAL_WRITE);
}

void rdma_stream_close(rdma_stream *stream) {
    if (stream->id && stream->id->qp) {
        if (stream->state >= STREAM_OPEN)
            rdma_disconnect(stream->id);
        rdma_destroy_qp(stream->id);
    }
    if (stream->id)
        rdma_destroy_id(stream->id);
    if (stream->send_cq)
        ibv_destroy_cq(stream->send_cq);
    if (stream->receive_cq)
        ibv_destroy_cq(stream->receive_cq);
    if (stream->channel)
        ibv_destroy_comp_channel(stream->channel);
    if (stream->mr)
        ibv_dereg_mr(stream->mr);
    if (stream->pd)
        ibv_dealloc_pd(stream->pd);
    if (stream->events)
        rdma_destroy_event_channel(stream->events);
    if (stream->memory)
        munmap(stream->memory, STREAM_BYTES);
    if (stream->epoll_fd > 0)
        close(stream->epoll_fd);
    memset(stream, 0, sizeof *stream);
}
