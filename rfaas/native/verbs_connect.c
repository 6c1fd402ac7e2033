/* How two sides of a lane find each other: librdmacm, with private data of ours.
 *
 *     client                                worker
 *                                           bind to the device's address, listen
 *     resolve address, route
 *     queue pair, receives
 *     connect(verbs_hello)      ------->    a stranger? reject(verbs_refusal)
 *                                           queue pair, receives
 *     established               <-------    accept(verbs_window)
 *
 * Nothing here is on the hot path, and nothing waits past its deadline.
 */
#define _GNU_SOURCE
#include "verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>

/* The first wait for an address, doubled with each.  Its answer can be missed, and is looked for
 * only when the wait is over: docs/architecture.md, "Decisions". */
#define ADDRESS_TRY_MS 50
#define ADDRESS_TRY_MS_MAX 1600
#define ACK_TIMEOUT 16      /* 4.096 us * 2^16 = 0.27 s, InfiniBand specification 9.7.6.1.3 */
#define RETRY_COUNT 6       /* so a peer that is gone is found out after some 2 s; 7, the most,
                             * is for ever to SoftRoCE (rxe_comp.c) */
#define RNR_RETRY_COUNT 6   /* 7 would be for ever; receives run out only at a peer that cheats */

int (*verbs_interrupted)(void);

static int milliseconds_left(uint64_t deadline_ns) {
    const uint64_t now = monotonic_ns();
    return now >= deadline_ns ? 0 : (int)((deadline_ns - now) / 1000000) + 1;
}

/* Wait for an event and compare it: 0 with *event to be acknowledged, or -1. */
static int expect(verbs_link *link, enum rdma_cm_event_type wanted, const char *step,
                  uint64_t deadline_ns, struct rdma_cm_event **event, verbs_trouble *trouble) {
    struct pollfd readable = {.fd = link->events->fd, .events = POLLIN};
    int count;
    do
        count = poll(&readable, 1, milliseconds_left(deadline_ns));
    while (count < 0 && errno == EINTR && verbs_interrupted && !verbs_interrupted());
    if (count <= 0)
        return verbs_failed(trouble, step, count ? errno : ETIMEDOUT);
    if (rdma_get_cm_event(link->events, event))
        return verbs_failed(trouble, step, errno);
    if ((*event)->event == wanted)
        return 0;
    verbs_failed(trouble, step, 0);
    trouble->event = (*event)->event;
    trouble->status = (*event)->status;
    verbs_refusal refusal;
    if ((*event)->event == RDMA_CM_EVENT_REJECTED &&
        (*event)->param.conn.private_data_len >= sizeof refusal) {
        memcpy(&refusal, (*event)->param.conn.private_data, sizeof refusal);
        if (refusal.magic == VERBS_MAGIC)
            trouble->reason = refusal.reason;
    }
    rdma_ack_cm_event(*event);
    return -1;
}

static int open_events(verbs_link *link, verbs_trouble *trouble) {
    if (!(link->events = rdma_create_event_channel()))
        return verbs_failed(trouble, "open an event channel of rdma_cm", errno);
    if (fcntl(link->events->fd, F_SETFL, fcntl(link->events->fd, F_GETFL) | O_NONBLOCK))
        return verbs_failed(trouble, "set up an event channel of rdma_cm", errno);
    return 0;
}

/* Look for the address in short tries, until one finds it or the deadline has passed. */
static int find_address(verbs_link *link, const struct sockaddr *from, const struct sockaddr *to,
                        uint64_t deadline_ns, verbs_trouble *trouble) {
    struct rdma_cm_event *event;
    uint32_t tries = 0;
    for (int patience_ms = ADDRESS_TRY_MS;;) {
        const int left_ms = milliseconds_left(deadline_ns);
        const int try_ms = patience_ms < left_ms ? patience_ms : left_ms;
        tries++;
        /* librdmacm takes them without const and does not write to them; the first try binds it. */
        if (rdma_resolve_addr(link->id, (struct sockaddr *)(uintptr_t)(tries == 1 ? from : NULL),
                              (struct sockaddr *)(uintptr_t)to, try_ms))
            return verbs_failed(trouble, "resolve the address", errno);
        const int failed = expect(link, RDMA_CM_EVENT_ADDR_RESOLVED, "resolve the address",
                                  deadline_ns, &event, trouble);
        if (!failed) {
            rdma_ack_cm_event(event);
            return 0;
        }
        trouble->tries = tries;
        if (trouble->event != RDMA_CM_EVENT_ADDR_ERROR || trouble->status != -ETIMEDOUT ||
            !milliseconds_left(deadline_ns))
            return -1;
        if (patience_ms < ADDRESS_TRY_MS_MAX)
            patience_ms *= 2;
    }
}

static int find_route(verbs_link *link, const struct sockaddr *from, const struct sockaddr *to,
                      uint64_t deadline_ns, verbs_trouble *trouble) {
    struct rdma_cm_event *event;
    if (rdma_create_id(link->events, &link->id, link, RDMA_PS_TCP))
        return verbs_failed(trouble, "open an endpoint of rdma_cm", errno);
    if (find_address(link, from, to, deadline_ns, trouble))
        return -1;
    uint8_t ack_timeout = ACK_TIMEOUT; /* a kernel that does not know it has its own */
    rdma_set_option(link->id, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &ack_timeout,
                    sizeof ack_timeout);
    if (rdma_resolve_route(link->id, milliseconds_left(deadline_ns)))
        return verbs_failed(trouble, "find a route", errno);
    if (expect(link, RDMA_CM_EVENT_ROUTE_RESOLVED, "find a route", deadline_ns, &event, trouble))
        return -1;
    rdma_ack_cm_event(event);
    return 0;
}

static int take_answer(verbs_link *link, const struct rdma_cm_event *event, uint16_t lane,
                       verbs_trouble *trouble) {
    verbs_window inputs = {0};
    if (event->param.conn.private_data_len >= sizeof inputs)
        memcpy(&inputs, event->param.conn.private_data, sizeof inputs);
    const uint32_t reason =
        inputs.magic != VERBS_MAGIC       ? REFUSED_STRANGER
        : inputs.version != VERBS_VERSION ? REFUSED_VERSION
        : inputs.lane != lane             ? REFUSED_LANE
        : inputs.slots != link->slots || inputs.slot_bytes != link->slot_bytes
            ? REFUSED_GEOMETRY
            : 0;
    if (reason) {
        verbs_failed(trouble, "understand the worker's answer", EBADMSG);
        trouble->reason = reason;
        return -1;
    }
    verbs_aim(link, &inputs);
    return 0;
}

int verbs_connect(verbs_link *link, const ring_map *ring, const struct sockaddr *from,
                  const struct sockaddr *to, uint16_t lane, const uint8_t *secret,
                  uint64_t timeout_ns, verbs_trouble *trouble) {
    const uint64_t deadline_ns = monotonic_ns() + timeout_ns;
    struct rdma_cm_event *event;
    if (open_events(link, trouble) || find_route(link, from, to, deadline_ns, trouble) ||
        verbs_prepare(link, link->id->verbs, ring, 0, trouble) ||
        verbs_queue_pair(link, link->id, trouble))
        return -1;
    verbs_hello hello = {.outputs = verbs_describe(link, lane)};
    memcpy(hello.secret, secret, SECRET_BYTES);
    struct rdma_conn_param parameters = {
        .private_data = &hello,
        .private_data_len = sizeof hello,
        .retry_count = RETRY_COUNT,
        .rnr_retry_count = RNR_RETRY_COUNT,
    };
    if (rdma_connect(link->id, &parameters))
        return verbs_failed(trouble, "connect", errno);
    if (expect(link, RDMA_CM_EVENT_ESTABLISHED, "connect", deadline_ns, &event, trouble))
        return -1;
    int failed = take_answer(link, event, lane, trouble);
    rdma_ack_cm_event(event);
    return failed;
}

int verbs_listen(struct rdma_event_channel *events, const struct sockaddr *at, int backlog,
                 struct rdma_cm_id **id, verbs_trouble *trouble) {
    if (rdma_create_id(events, id, NULL, RDMA_PS_TCP))
        return verbs_failed(trouble, "open an endpoint of rdma_cm", errno);
    if (rdma_bind_addr(*id, (struct sockaddr *)(uintptr_t)at))
        return verbs_failed(trouble, "bind to the address", errno);
    if (!(*id)->verbs)
        return verbs_failed(trouble, "find the device of the address", ENODEV);
    if (rdma_listen(*id, backlog))
        return verbs_failed(trouble, "listen", errno);
    return 0;
}

int verbs_accept(verbs_link *link, struct rdma_cm_id *id, uint16_t lane, verbs_trouble *trouble) {
    verbs_window inputs = verbs_describe(link, lane);
    struct rdma_conn_param parameters = {
        .private_data = &inputs,
        .private_data_len = sizeof inputs,
        .rnr_retry_count = RNR_RETRY_COUNT,
    };
    id->context = link;
    if (rdma_accept(id, &parameters))
        return verbs_failed(trouble, "accept", errno);
    return 0;
}

void verbs_events(verbs_link *link) {
    struct rdma_cm_event *event;
    while (!rdma_get_cm_event(link->events, &event)) {
        if (event->event != RDMA_CM_EVENT_TIMEWAIT_EXIT)
            verbs_break(link, FAULT_EVENT, (int)event->event, event->status);
        rdma_ack_cm_event(event);
    }
}
