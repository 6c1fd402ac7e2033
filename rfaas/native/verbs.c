/* A lane's queues and memory on a NIC: made, watched, given back.  See verbs.h. */
#define _GNU_SOURCE
#include "verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>

#define SEND_DEPTH_MIN 64u
#define LOCKED_BYTES_MAX (64ull << 20) /* of a window, if the device can do without */
#define SIGNALS_PER_QUEUE 4u /* one write in a quarter of the send queue is signalled */

_Static_assert(sizeof(verbs_window) == 28 && sizeof(verbs_hello) == 44, "as in wire.py");
_Static_assert(sizeof(verbs_hello) <= 56, "private data of connect, rdma_connect(3)");

int verbs_failed(verbs_trouble *trouble, const char *step, int error) {
    *trouble = (verbs_trouble){.step = step, .error = error, .event = -1, .bytes = trouble->bytes};
    return -1;
}

static int is_flush(const verbs_fault *fault) {
    return (fault->where == FAULT_SEND || fault->where == FAULT_RECEIVE) &&
           fault->status == IBV_WC_WR_FLUSH_ERR;
}

void verbs_break(verbs_link *link, uint32_t where, int status, int detail) {
    const verbs_fault fault = {where, status, detail};
    if (link->broken && (is_flush(&fault) || !is_flush(&link->fault)))
        return;
    link->fault = fault;
    store_release(&link->broken, 1);
}

void verbs_explain(verbs_link *link, int patience_ms) {
    struct pollfd readable = {.fd = link->events->fd, .events = POLLIN};
    struct ibv_port_attr port;
    if (!is_flush(&link->fault))
        return;
    verbs_reap(link, 0);
    verbs_events(link);
    if (is_flush(&link->fault) && !ibv_query_port(link->id->verbs, link->id->port_num, &port) &&
        port.state != IBV_PORT_ACTIVE)
        verbs_break(link, FAULT_PORT, (int)port.state, link->id->port_num);
    /* The connection manager may be slower than the queues. */
    if (is_flush(&link->fault) && poll(&readable, 1, patience_ms) > 0)
        verbs_events(link);
}

/* Two threads may reap, and hand on what they found in either order. */
static void retire(verbs_link *link, uint64_t id) {
    uint32_t before = load_relaxed(&link->retired);
    if (id == PROBE_ID)
        store_release(&link->probing, 0);
    else
        while ((int32_t)((uint32_t)id - before) > 0 &&
               !__atomic_compare_exchange_n(&link->retired, &before, (uint32_t)id, 1,
                                            __ATOMIC_RELEASE, __ATOMIC_RELAXED))
            ;
}

int verbs_reap(verbs_link *link, int wait) {
    struct ibv_wc done[SIGNALS_PER_QUEUE];
    do {
        int count = ibv_poll_cq(link->send_cq, SIGNALS_PER_QUEUE, done);
        if (UNLIKELY(count < 0))
            verbs_break(link, FAULT_POST, EIO, 0);
        for (int i = 0; i < count; i++) {
            if (UNLIKELY(done[i].status != IBV_WC_SUCCESS)) {
                verbs_break(link, FAULT_SEND, (int)done[i].status,
                            (int)done[i].vendor_err);
                return -1;
            }
            retire(link, done[i].wr_id);
        }
        if (UNLIKELY(load_acquire(&link->broken)))
            return -1;
    } while (wait && link->sent + 1 - load_acquire(&link->retired) > link->send_depth);
    return 0;
}

void verbs_probe(verbs_link *link) {
    const uint64_t now = monotonic_ns();
    if (load_acquire(&link->broken))
        return;
    if (load_acquire(&link->probing)) {
        verbs_reap(link, 0);
    } else if (now - link->probed_ns >= PROBE_NS) {
        /* Of no bytes, so that no key and no address counts: its queue has room for one. */
        struct ibv_send_wr *bad, probe = {.wr_id = PROBE_ID, .opcode = IBV_WR_RDMA_WRITE,
                                          .send_flags = IBV_SEND_SIGNALED,
                                          .wr.rdma = {link->remote_base,
                                                      link->write.wr.rdma.rkey}};
        link->probed_ns = now;
        store_release(&link->probing, 1);
        const int error = ibv_post_send(link->qp, &probe, &bad);
        if (error)
            verbs_break(link, FAULT_POST, error, 0);
    }
}

void verbs_flushed(verbs_link *link, const struct ibv_wc *completion) {
    /* A flushed receive is a consequence: the write that broke the connection says more. */
    if (completion->status == IBV_WC_WR_FLUSH_ERR)
        verbs_reap(link, 0);
    verbs_break(link, FAULT_RECEIVE, (int)completion->status, (int)completion->vendor_err);
}

int verbs_doze(verbs_link *link, int other_fd, uint64_t sleep_ns) {
    struct pollfd fds[2] = {{.fd = link->channel->fd, .events = POLLIN},
                            {.fd = other_fd, .events = POLLIN}};
    struct timespec t = {(time_t)(sleep_ns / 1000000000u), (long)(sleep_ns % 1000000000u)};
    if (ppoll(fds, 2, sleep_ns == UINT64_MAX ? NULL : &t, NULL) <= 0)
        return 0;
    struct ibv_cq *cq;
    void *context;
    unsigned events = 0;
    while (fds[0].revents && !ibv_get_cq_event(link->channel, &cq, &context))
        events++;
    if (events)
        ibv_ack_cq_events(link->receive_cq, events);
    return fds[1].revents != 0;
}

static uint32_t power_of_two_below(uint32_t value) {
    uint32_t power = 1;
    while (power * 2 <= value)
        power *= 2;
    return power;
}

/* Receives are all alike: one chain of a batch, posted again and again. */
static int make_receives(verbs_link *link) {
    link->receives = calloc(link->receive_batch, sizeof *link->receives);
    if (!link->receives)
        return ENOMEM;
    for (uint32_t i = 0; i + 1 < link->receive_batch; i++)
        link->receives[i].next = &link->receives[i + 1];
    return 0;
}

int verbs_locks_always;

/* Whether memory that is not locked can be written from and to: the device fetches pages when
 * it meets them. */
static int pages_on_demand(struct ibv_context *device) {
    struct ibv_device_attr_ex limits;
    const uint32_t needed = IBV_ODP_SUPPORT_WRITE;
    return !verbs_locks_always && !ibv_query_device_ex(device, NULL, &limits) &&
           limits.odp_caps.general_caps & IBV_ODP_SUPPORT &&
           (limits.odp_caps.per_transport_caps.rc_odp_caps & needed) == needed;
}

static int register_halves(verbs_link *link, uint8_t *sources, uint8_t *targets, uint64_t bytes,
                           int how) {
    const int open = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE;
    if ((link->sources = ibv_reg_mr(link->pd, sources, bytes, how)) &&
        (link->targets = ibv_reg_mr(link->pd, targets, bytes, open | how)))
        return 0;
    int error = errno;
    if (link->sources)
        ibv_dereg_mr(link->sources);
    link->sources = NULL;
    return error;
}

/* A small window is locked, which never costs a call anything.  A large one would take long to
 * lock, and as a rule more than may be locked: where the device can, its pages are fetched on
 * demand, once each. */
static int register_window(verbs_link *link, uint8_t *sources, uint8_t *targets, uint64_t bytes) {
    if (2 * bytes > LOCKED_BYTES_MAX && pages_on_demand(link->pd->context) &&
        !register_halves(link, sources, targets, bytes, IBV_ACCESS_ON_DEMAND))
        return 0;
    int error = register_halves(link, sources, targets, bytes, 0);
    if ((error == ENOMEM || error == EAGAIN) && pages_on_demand(link->pd->context))
        error = register_halves(link, sources, targets, bytes, IBV_ACCESS_ON_DEMAND);
    return error;
}

int verbs_prepare(verbs_link *link, struct ibv_context *device, const ring_map *ring,
                  int remote_inputs, verbs_trouble *trouble) {
    const uint64_t half = ring->slots * ring->stride - PAGE_BYTES; /* less the last guard page */
    struct ibv_device_attr limits;
    link->slots = ring->slots;
    link->slot_bytes = (uint32_t)ring->slot_bytes;
    link->stride = ring->stride;
    link->receive_batch = ring->slots > 1 ? ring->slots / 2 : 1;
    link->receive_depth = (ring->slots / link->receive_batch + 2) * link->receive_batch;
    link->send_depth = 2 * ring->slots > SEND_DEPTH_MIN ? 2 * ring->slots : SEND_DEPTH_MIN;
    link->signal_mask = power_of_two_below(link->send_depth / SIGNALS_PER_QUEUE) - 1;
    *trouble = (verbs_trouble){.bytes = 2 * half};
    if (make_receives(link))
        return verbs_failed(trouble, "find memory", ENOMEM);
    int error = ibv_query_device(device, &limits);
    if (error)
        return verbs_failed(trouble, "ask the device for its limits", error);
    if (link->receive_depth > (uint32_t)limits.max_qp_wr ||
        link->send_depth >= (uint32_t)limits.max_qp_wr ||
        link->receive_depth > (uint32_t)limits.max_cqe)
        return verbs_failed(trouble, "find room for so many slots in the device's queues", E2BIG);
    /* A protection domain of its own: a key of this lane opens nothing over another's. */
    if (!(link->pd = ibv_alloc_pd(device)))
        return verbs_failed(trouble, "allocate a protection domain", errno);
    uint8_t *sources = remote_inputs ? ring->outputs : ring->inputs;
    uint8_t *targets = remote_inputs ? ring->inputs : ring->outputs;
    if ((error = register_window(link, sources, targets, half)))
        return verbs_failed(trouble, "register the window", error);
    if (!(link->channel = ibv_create_comp_channel(device)))
        return verbs_failed(trouble, "create a completion channel", errno);
    if (fcntl(link->channel->fd, F_SETFL, fcntl(link->channel->fd, F_GETFL) | O_NONBLOCK))
        return verbs_failed(trouble, "set up the completion channel", errno);
    link->receive_cq =
        ibv_create_cq(device, (int)link->receive_depth, NULL, link->channel, 0);
    if (link->receive_cq)
        link->send_cq = ibv_create_cq(device, (int)link->send_depth + 1, NULL, NULL, 0);
    if (!link->send_cq)
        return verbs_failed(trouble, "create a completion queue", errno);
    return 0;
}

/* What a device took when it was last asked for inline bytes; contexts of librdmacm live as long
 * as the process. */
static struct {
    pthread_mutex_t lock;
    struct ibv_context *device;
    uint32_t asked;
} inline_known = {.lock = PTHREAD_MUTEX_INITIALIZER};

static uint32_t inline_to_ask(struct ibv_context *device) {
    pthread_mutex_lock(&inline_known.lock);
    const uint32_t asked = inline_known.device == device ? inline_known.asked : INLINE_ASKED_MAX;
    pthread_mutex_unlock(&inline_known.lock);
    return asked;
}

static void inline_took(struct ibv_context *device, uint32_t asked) {
    pthread_mutex_lock(&inline_known.lock);
    inline_known.device = device;
    inline_known.asked = asked;
    pthread_mutex_unlock(&inline_known.lock);
}

/* No device tells what it takes inline before it is tried: step down until a queue pair is
 * made, and believe what was granted then. */
int verbs_queue_pair(verbs_link *link, struct rdma_cm_id *id, verbs_trouble *trouble) {
    struct ibv_qp_init_attr attributes;
    uint32_t asked = inline_to_ask(id->verbs);
    int error;
    for (;; asked /= 2) {
        attributes = (struct ibv_qp_init_attr){
            .send_cq = link->send_cq,
            .recv_cq = link->receive_cq,
            .qp_type = IBV_QPT_RC,
            .cap = {.max_send_wr = link->send_depth + 1, .max_recv_wr = link->receive_depth,
                    .max_send_sge = 1, .max_recv_sge = 1, .max_inline_data = asked},
        };
        error = rdma_create_qp(id, link->pd, &attributes) ? errno : 0;
        if (!error || !asked || (error != EINVAL && error != ENOMEM))
            break;
    }
    if (error)
        return verbs_failed(trouble, "create a queue pair", error);
    inline_took(id->verbs, asked);
    link->id = id;
    link->qp = id->qp;
    link->inline_max = attributes.cap.max_inline_data;
    for (uint32_t posted = 0; posted < link->receive_depth; posted += link->receive_batch) {
        struct ibv_recv_wr *bad;
        if ((error = ibv_post_recv(link->qp, link->receives, &bad)))
            return verbs_failed(trouble, "post receives", error);
    }
    return 0;
}

void verbs_unpair(verbs_link *link) {
    rdma_destroy_qp(link->id);
    link->id = NULL;
    link->qp = NULL;
}

verbs_window verbs_describe(const verbs_link *link, uint16_t lane) {
    return (verbs_window){VERBS_MAGIC, VERBS_VERSION, lane, (uintptr_t)link->targets->addr,
                          link->targets->rkey, link->slots, link->slot_bytes};
}

void verbs_aim(verbs_link *link, const verbs_window *window) {
    link->remote_base = window->address;
    link->sge.lkey = link->sources->lkey;
    link->write = (struct ibv_send_wr){
        .opcode = IBV_WR_RDMA_WRITE_WITH_IMM,
        .sg_list = &link->sge,
        .wr.rdma.rkey = window->rkey,
    };
}

void verbs_close(verbs_link *link) {
    if (link->id && link->id->qp)
        rdma_destroy_qp(link->id);
    if (link->id)
        rdma_destroy_id(link->id);
    if (link->send_cq)
        ibv_destroy_cq(link->send_cq);
    if (link->receive_cq)
        ibv_destroy_cq(link->receive_cq);
    if (link->channel)
        ibv_destroy_comp_channel(link->channel);
    if (link->targets)
        ibv_dereg_mr(link->targets);
    if (link->sources)
        ibv_dereg_mr(link->sources);
    if (link->pd)
        ibv_dealloc_pd(link->pd);
    if (link->events)
        rdma_destroy_event_channel(link->events);
    free(link->receives);
    memset(link, 0, sizeof *link);
}
