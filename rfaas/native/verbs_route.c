/* See verbs_route.h. */
#define _GNU_SOURCE
#include "verbs_route.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>

/* The first wait for an address, doubled with each.  Its answer can be missed, and is looked for
 * only when the wait is over: docs/architecture.md, "Decisions". */
#define ADDRESS_TRY_MS 50
#define ADDRESS_TRY_MS_MAX 1600
#define ACK_TIMEOUT 16      /* 4.096 us * 2^16 = 0.27 s, InfiniBand specification 9.7.6.1.3 */

int (*verbs_interrupted)(void);

int verbs_milliseconds_left(uint64_t deadline_ns) {
    const uint64_t now = monotonic_ns();
    return now >= deadline_ns ? 0 : (int)((deadline_ns - now) / 1000000) + 1;
}

int verbs_open_events(struct rdma_event_channel **events, verbs_trouble *trouble) {
    *trouble = (verbs_trouble){.event = -1};
    if (!(*events = rdma_create_event_channel()))
        return verbs_failed(trouble, "open an event channel of rdma_cm", errno);
    const int fd = (*events)->fd;
    if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK))
        return verbs_failed(trouble, "set up an event channel of rdma_cm", errno);
    return 0;
}

int verbs_expect(struct rdma_event_channel *events, enum rdma_cm_event_type wanted,
                 const char *step, uint64_t deadline_ns, struct rdma_cm_event **event,
                 verbs_trouble *trouble) {
    struct pollfd readable = {.fd = events->fd, .events = POLLIN};
    int count;
    do
        count = poll(&readable, 1, verbs_milliseconds_left(deadline_ns));
    while (count < 0 && errno == EINTR && verbs_interrupted && !verbs_interrupted());
    if (count <= 0)
        return verbs_failed(trouble, step, count ? errno : ETIMEDOUT);
    if (rdma_get_cm_event(events, event))
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

/* Look for the address in short tries, until one finds it or the deadline has passed. */
static int find_address(struct rdma_event_channel *events, struct rdma_cm_id *id,
                        const struct sockaddr *from, const struct sockaddr *to,
                        uint64_t deadline_ns, verbs_trouble *trouble) {
    struct rdma_cm_event *event;
    uint32_t tries = 0;
    for (int patience_ms = ADDRESS_TRY_MS;;) {
        const int left_ms = verbs_milliseconds_left(deadline_ns);
        const int try_ms = patience_ms < left_ms ? patience_ms : left_ms;
        tries++;
        /* librdmacm takes them without const and does not write to them; the first try binds it. */
        if (rdma_resolve_addr(id, (struct sockaddr *)(uintptr_t)(tries == 1 ? from : NULL),
                              (struct sockaddr *)(uintptr_t)to, try_ms))
            return verbs_failed(trouble, "resolve the address", errno);
        if (!verbs_expect(events, RDMA_CM_EVENT_ADDR_RESOLVED, "resolve the address", deadline_ns,
                          &event, trouble)) {
            rdma_ack_cm_event(event);
            return 0;
        }
        trouble->tries = tries;
        if (trouble->event != RDMA_CM_EVENT_ADDR_ERROR || trouble->status != -ETIMEDOUT ||
            !verbs_milliseconds_left(deadline_ns))
            return -1;
        if (patience_ms < ADDRESS_TRY_MS_MAX)
            patience_ms *= 2;
    }
}

int verbs_find_route(struct rdma_event_channel *events, struct rdma_cm_id **id,
                     const struct sockaddr *from, const struct sockaddr *to, uint64_t deadline_ns,
                     verbs_trouble *trouble) {
    struct rdma_cm_event *event;
    if (rdma_create_id(events, id, NULL, RDMA_PS_TCP))
        return verbs_failed(trouble, "open an endpoint of rdma_cm", errno);
    if (find_address(events, *id, from, to, deadline_ns, trouble))
        return -1;
    uint8_t ack_timeout = ACK_TIMEOUT; /* a kernel that does not know it has its own */
    rdma_set_option(*id, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &ack_timeout,
                    sizeof ack_timeout);
    if (rdma_resolve_route(*id, verbs_milliseconds_left(deadline_ns)))
        return verbs_failed(trouble, "find a route", errno);
    if (verbs_expect(events, RDMA_CM_EVENT_ROUTE_RESOLVED, "find a route", deadline_ns, &event,
                     trouble))
        return -1;
    rdma_ack_cm_event(event);
    return 0;
}
