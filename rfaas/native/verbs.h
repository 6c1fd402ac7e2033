/* One lane over a NIC: an RC connection, the two halves of its window, its queues.
 *
 *     client                                          worker
 *     inputs (local)   --- WRITE WITH IMM, slot i --->  inputs (remote writable)
 *     outputs (remote writable) <--- WRITE WITH IMM ---  outputs (local)
 *
 * Both sides are the same struct.  Slot i of one side is written from slot i of the other.
 * The immediate is that of rfaas/proto/wire.py, big-endian as verbs have it; the size comes
 * with the completion.  Receives carry no memory: they only take immediates.
 *
 * Bounds.  A side has at most `slots` writes on their way that the other has not consumed, so
 * `slots` + `receive_batch` receives are never exhausted if they are replenished whenever
 * `receive_batch` of them are used up.  Writes are signalled one in `signal_mask` + 1; before
 * the send queue could overrun, `verbs_reap` waits for such a completion.
 *
 * One thread at a time writes, one at a time polls; in the worker they are the same.  Both may
 * reap, and who polls also probes: while a call takes long, an empty write tells whether there
 * is still a NIC at the other side, for a host that is gone says nothing.
 */
#ifndef RFAAS_VERBS_H
#define RFAAS_VERBS_H

#include "ring.h"
#include "verbs_wire.h"

#include <endian.h>
#include <rdma/rdma_cma.h>

#define POLL_BATCH 16        /* completions taken at once */
/* Of spinning, then whoever shares the processor may run.  Longer than a round trip over a NIC
 * in software: a yield in its midst costs more than it gives. */
#define VERBS_YIELD_NS 1000000
#define INLINE_ASKED_MAX 1024u
#define PROBE_NS 1000000000u /* of waiting between two probes */
#define PROBE_ID (1ull << 32) /* as a wr_id; those of writes have 32 bits */

/* What broke a connection.  The first thing counts, but for a flush: that what was posted comes
 * back unused is the consequence of something else, and gives way to it whenever it is found. */
enum { FAULT_NONE, FAULT_SEND, FAULT_RECEIVE, FAULT_POST, FAULT_EVENT, FAULT_PROTOCOL,
       FAULT_PORT, FAULT_WORKER /* the worker behind an endpoint is gone, or answers nonsense */ };

typedef struct {
    uint32_t where;         /* FAULT_* */
    int32_t status;         /* ibv_wc_status, errno, rdma_cm_event_type or ibv_port_state, after
                             * `where` */
    int32_t detail;         /* the vendor's code of a completion, the status of an event, the number of
                             * a port */
} verbs_fault;

/* Why something off the hot path failed. */
typedef struct {
    const char *step;
    int error;       /* errno, or 0 */
    int event;       /* rdma_cm_event_type that came instead, or -1 */
    int status;      /* of that event */
    uint32_t reason; /* REFUSED_*, or 0 */
    uint64_t bytes;  /* that were to be registered */
    uint32_t tries;  /* that were made to resolve the address, or 0 */
} verbs_trouble;

typedef struct {
    struct ibv_qp *qp;
    struct ibv_cq *receive_cq, *send_cq;
    uint64_t remote_base, stride;
    uint32_t inline_max, signal_mask, send_depth;
    uint32_t sent, retired;             /* writes, modulo 2^32 */
    uint32_t consumed, receive_batch;   /* receives to replenish; at how many */
    uint32_t broken;                    /* `fault` is set and nothing goes any more */
    uint32_t probing;                   /* a probe is on its way */
    uint64_t probed_ns;                 /* when the last one left */
    struct ibv_sge sge;
    struct ibv_send_wr write;           /* filled in but for what changes */
    struct ibv_recv_wr *receives;       /* a chain of receive_batch */
    /* off the hot path */
    verbs_fault fault;
    struct rdma_event_channel *events;  /* NULL in a worker: its listener has it */
    struct rdma_cm_id *id;
    struct ibv_pd *pd;
    struct ibv_comp_channel *channel;
    struct ibv_mr *sources, *targets;   /* the half it writes from, the half written to */
    uint32_t slots, slot_bytes, receive_depth;
} verbs_link;

/* Whether windows are always locked, as on a device without on-demand paging; tests set it. */
extern int verbs_locks_always;

void verbs_break(verbs_link *link, uint32_t where, int status, int detail);

/* Take completions of writes; with `wait`, until the send queue has room: 0, or -1 if broken. */
int verbs_reap(verbs_link *link, int wait);

/* Ask the other side's NIC for a sign of life, if it is time to; what comes of it breaks the link
 * or does not. */
void verbs_probe(verbs_link *link);

/* A completion of a receive that is no success: break the link with the cause of it. */
void verbs_flushed(verbs_link *link, const struct ibv_wc *completion);

/* Write `size` bytes at `data` into the other side's slot, and say so: 0, or -1 if broken.
 * `data` is memory of this side's half, or anywhere if `size` is at most inline_max. */
static inline int verbs_write(verbs_link *link, uint32_t slot, uint32_t imm, const void *data,
                              uint32_t size) {
    struct ibv_send_wr *wr = &link->write, *bad;
    const uint32_t sent = link->sent + 1;
    const int signalled = !(sent & link->signal_mask);
    if (UNLIKELY(sent - link->retired > link->send_depth) && verbs_reap(link, 1))
        return -1;
    link->sge.addr = (uintptr_t)data;
    link->sge.length = size;
    wr->wr_id = sent;
    wr->num_sge = size != 0;
    wr->imm_data = htobe32(imm);
    wr->wr.rdma.remote_addr = link->remote_base + slot * link->stride;
    wr->send_flags = (size <= link->inline_max ? IBV_SEND_INLINE : 0) |
                     (signalled ? IBV_SEND_SIGNALED : 0);
    link->sent = sent;
    const int error = ibv_post_send(link->qp, wr, &bad);
    if (UNLIKELY(error)) {
        verbs_break(link, FAULT_POST, error, 0);
        return -1;
    }
    return UNLIKELY(signalled) ? verbs_reap(link, 0) : 0;
}

/* `count` more receives were consumed: post new ones when a batch is due. */
static inline void verbs_replenish(verbs_link *link, uint32_t count) {
    struct ibv_recv_wr *bad;
    link->consumed += count;
    while (UNLIKELY(link->consumed >= link->receive_batch)) {
        link->consumed -= link->receive_batch;
        const int error = ibv_post_recv(link->qp, link->receives, &bad);
        if (UNLIKELY(error)) {
            verbs_break(link, FAULT_POST, error, 0);
            return;
        }
    }
}

/* Sleep until a receive completes, `other_fd` (-1: none) is readable or `sleep_ns` have passed
 * (UINT64_MAX: for ever); armed by ibv_req_notify_cq before.  1 if `other_fd` is readable. */
int verbs_doze(verbs_link *link, int other_fd, uint64_t sleep_ns);

/* Register both halves of the ring's window with `device` and make the queues for `slots` calls.
 * `remote_inputs`: the other side writes inputs (this is the worker), else outputs. */
int verbs_prepare(verbs_link *link, struct ibv_context *device, const ring_map *ring,
                  int remote_inputs, verbs_trouble *trouble);
int verbs_queue_pair(verbs_link *link, struct rdma_cm_id *id, verbs_trouble *trouble);
/* Undo that, before anybody was accepted: the id is its owner's again. */
void verbs_unpair(verbs_link *link);
/* Write to what the other side has described. */
void verbs_aim(verbs_link *link, const verbs_window *window);
/* What the other side may write to. */
verbs_window verbs_describe(const verbs_link *link, uint16_t lane);
void verbs_close(verbs_link *link);
int verbs_failed(verbs_trouble *trouble, const char *step, int error);

/* Whether the handler of a signal has ended what waits; NULL: any signal does. */
extern int (*verbs_interrupted)(void);

/* rdma_cm: verbs_connect.c.  All return 0, or -1 with the trouble. */
int verbs_connect(verbs_link *link, const ring_map *ring, const struct sockaddr *from,
                  const struct sockaddr *to, uint16_t lane, const uint8_t *secret,
                  uint64_t timeout_ns, verbs_trouble *trouble);
int verbs_listen(struct rdma_event_channel *events, const struct sockaddr *at, int backlog,
                 struct rdma_cm_id **id, verbs_trouble *trouble);
int verbs_accept(verbs_link *link, struct rdma_cm_id *id, uint16_t lane, verbs_trouble *trouble);
/* Take the connection events that are there; what ends the connection breaks the link. */
void verbs_events(verbs_link *link);
/* A broken link of a client: look for the cause of a flush, for `patience_ms` at most. */
void verbs_explain(verbs_link *link, int patience_ms);

#endif
