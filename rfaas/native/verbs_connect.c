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
 * Nothing here is on the hot path, and nothing waits past its deadline.  How the address and the
 * route are found is in verbs_route.c.
 */
#define _GNU_SOURCE
#include "verbs_route.h"

#include <errno.h>

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
    if (verbs_open_events(&link->events, trouble) ||
        verbs_find_route(link->events, &link->id, from, to, deadline_ns, trouble) ||
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
    if (verbs_expect(link->events, RDMA_CM_EVENT_ESTABLISHED, "connect", deadline_ns, &event,
                     trouble))
        return -1;
    int failed = take_answer(link, event, lane, trouble);
    rdma_ack_cm_event(event);
    return failed;
}

int verbs_listen(struct rdma_event_channel *events, const struct sockaddr *at, int backlog,
                 struct rdma_cm_id **id, verbs_trouble *trouble) {
    *trouble = (verbs_trouble){.event = -1};
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
