/* See verbs_account.h.  Nothing of this is on the path of a call: the main thread of a worker,
 * or of its endpoint, tells once in a while what the lanes have counted. */
#define _GNU_SOURCE
#include "verbs_account.h"

#include "verbs_route.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>

#define QUEUE_DEPTH 32u      /* additions on their way */
#define ATOMICS_AT_ONCE 1    /* every device with atomics answers one at a time */

_Static_assert(sizeof(account_hello) == 24 && sizeof(account_place) == 20, "as in wire.py");

static size_t page_bytes(uint32_t lanes) {
    const size_t bytes = lanes * sizeof(ring_account);
    return (bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
}

int account_has_atomics(struct ibv_context *device) {
    struct ibv_device_attr limits;
    return !ibv_query_device(device, &limits) && limits.atomic_cap != IBV_ATOMIC_NONE &&
           limits.max_qp_rd_atom > 0;
}

int account_open(account_link *link, struct ibv_context *device, uint32_t lanes, int is_page,
                 verbs_trouble *trouble) {
    const int access = IBV_ACCESS_LOCAL_WRITE | (is_page ? IBV_ACCESS_REMOTE_ATOMIC : 0);
    link->lanes = lanes;
    *trouble = (verbs_trouble){.bytes = page_bytes(lanes)};
    link->words = aligned_alloc(PAGE_BYTES, page_bytes(lanes));
    link->told = calloc(lanes * ACCOUNT_WORDS, sizeof *link->told);
    if (!link->words || !link->told)
        return verbs_failed(trouble, "find memory for counts", ENOMEM);
    memset(link->words, 0, page_bytes(lanes));
    if (!(link->pd = ibv_alloc_pd(device)))
        return verbs_failed(trouble, "allocate a protection domain", errno);
    if (!(link->mr = ibv_reg_mr(link->pd, link->words, page_bytes(lanes), access)))
        return verbs_failed(trouble, "register the accounting page", errno);
    if (!(link->channel = ibv_create_comp_channel(device)) ||
        fcntl(link->channel->fd, F_SETFL, fcntl(link->channel->fd, F_GETFL) | O_NONBLOCK))
        return verbs_failed(trouble, "create a completion channel", errno);
    if (!(link->cq = ibv_create_cq(device, QUEUE_DEPTH, NULL, link->channel, 0)))
        return verbs_failed(trouble, "create a completion queue", errno);
    return 0;
}

static int make_queue_pair(account_link *link, verbs_trouble *trouble) {
    struct ibv_qp_init_attr attributes = {
        .send_cq = link->cq,
        .recv_cq = link->cq,
        .qp_type = IBV_QPT_RC,
        .cap = {.max_send_wr = QUEUE_DEPTH, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1},
    };
    if (rdma_create_qp(link->id, link->pd, &attributes))
        return verbs_failed(trouble, "create a queue pair", errno);
    return 0;
}

int account_accept(account_link *link, struct rdma_cm_id *id, verbs_trouble *trouble) {
    const account_place place = {ACCOUNT_MAGIC, VERBS_VERSION, (uint16_t)link->lanes,
                                 (uintptr_t)link->words, link->mr->rkey};
    struct rdma_conn_param parameters = {
        .private_data = &place,
        .private_data_len = sizeof place,
        .responder_resources = ATOMICS_AT_ONCE,
        .rnr_retry_count = RNR_RETRY_COUNT,
    };
    link->id = id;
    id->context = link;
    if (make_queue_pair(link, trouble))
        return -1;
    if (rdma_accept(id, &parameters))
        return verbs_failed(trouble, "accept", errno);
    return 0;
}

int account_connect(account_link *link, const struct sockaddr *to, uint32_t lanes,
                    const uint8_t *secret, uint64_t timeout_ns, verbs_trouble *trouble) {
    const uint64_t deadline_ns = monotonic_ns() + timeout_ns;
    account_hello hello = {.magic = ACCOUNT_MAGIC, .version = VERBS_VERSION};
    account_place place = {0}; /* of a stranger, whose answer is too short */
    memcpy(hello.secret, secret, SECRET_BYTES);
    struct rdma_conn_param parameters = {
        .private_data = &hello,
        .private_data_len = sizeof hello,
        .initiator_depth = ATOMICS_AT_ONCE,
        .retry_count = RETRY_COUNT,
        .rnr_retry_count = RNR_RETRY_COUNT,
    };
    struct rdma_cm_event *event;
    if (verbs_open_events(&link->events, trouble) ||
        verbs_find_route(link->events, &link->id, NULL, to, deadline_ns, trouble) ||
        account_open(link, link->id->verbs, lanes, 0, trouble) || make_queue_pair(link, trouble))
        return -1;
    if (rdma_connect(link->id, &parameters))
        return verbs_failed(trouble, "connect", errno);
    if (verbs_expect(link->events, RDMA_CM_EVENT_ESTABLISHED, "connect", deadline_ns, &event,
                     trouble))
        return -1;
    if (event->param.conn.private_data_len >= sizeof place)
        memcpy(&place, event->param.conn.private_data, sizeof place);
    rdma_ack_cm_event(event);
    if (place.magic != ACCOUNT_MAGIC || place.version != VERBS_VERSION || place.lanes != lanes)
        return verbs_failed(trouble, "understand the executor's answer", EBADMSG);
    link->remote = place.address;
    link->rkey = place.rkey;
    return 0;
}

/* Take the completions of `count` additions: 0, or -1 if they do not come. */
static int finish(account_link *link, uint32_t count, uint64_t deadline_ns) {
    struct ibv_wc done[QUEUE_DEPTH];
    struct pollfd readable = {.fd = link->channel->fd, .events = POLLIN};
    struct ibv_cq *cq;
    void *context;
    while (count) {
        if (ibv_req_notify_cq(link->cq, 0))
            return -1;
        const int got = ibv_poll_cq(link->cq, QUEUE_DEPTH, done);
        for (int i = 0; i < got; i++)
            if (done[i].status != IBV_WC_SUCCESS)
                return -1;
        if (got < 0 || (uint32_t)got > count)
            return -1;
        count -= (uint32_t)got;
        if (got || !count)
            continue;
        const int left_ms = verbs_milliseconds_left(deadline_ns);
        if (!left_ms || (poll(&readable, 1, left_ms) < 0 && errno != EINTR))
            return -1;
        while (!ibv_get_cq_event(link->channel, &cq, &context))
            ibv_ack_cq_events(cq, 1);
    }
    return 0;
}

int account_tell(account_link *link, const ring_account *lines, uint64_t timeout_ns) {
    const uint64_t deadline_ns = monotonic_ns() + timeout_ns;
    const uint64_t *now = (const uint64_t *)lines;
    uint32_t posted = 0;
    for (uint32_t at = 0; at < link->lanes * ACCOUNT_WORDS && !link->broken; at++) {
        const uint64_t word = __atomic_load_n(&now[at], __ATOMIC_RELAXED);
        if (word == link->told[at])
            continue;
        struct ibv_sge landing = {(uintptr_t)&link->words[at], sizeof word, link->mr->lkey};
        struct ibv_send_wr *bad, add = {
            .wr_id = at, .sg_list = &landing, .num_sge = 1,
            .opcode = IBV_WR_ATOMIC_FETCH_AND_ADD, .send_flags = IBV_SEND_SIGNALED,
            .wr.atomic = {.remote_addr = link->remote + at * sizeof word,
                          .compare_add = word - link->told[at], .rkey = link->rkey},
        };
        if (ibv_post_send(link->id->qp, &add, &bad)) {
            link->broken = 1;
            break;
        }
        link->told[at] = word;
        if (++posted == QUEUE_DEPTH) {
            link->broken = finish(link, posted, deadline_ns) != 0;
            posted = 0;
        }
    }
    if (!link->broken)
        link->broken = finish(link, posted, deadline_ns) != 0;
    return link->broken ? -1 : 0;
}

void account_close(account_link *link) {
    if (link->id && link->id->qp) {
        rdma_disconnect(link->id);
        rdma_destroy_qp(link->id);
    }
    if (link->id)
        rdma_destroy_id(link->id);
    if (link->cq)
        ibv_destroy_cq(link->cq);
    if (link->channel)
        ibv_destroy_comp_channel(link->channel);
    if (link->mr)
        ibv_dereg_mr(link->mr);
    if (link->pd)
        ibv_dealloc_pd(link->pd);
    if (link->events)
        rdma_destroy_event_channel(link->events);
    free(link->words);
    free(link->told);
    memset(link, 0, sizeof *link);
}
