/* The way to an address by rdma_cm, step by step until a deadline: what lanes and accounts share.
 *
 *     verbs_open_events, verbs_find_route, then what is one's own: queues, rdma_connect,
 *     verbs_expect(ESTABLISHED)
 *
 * All return 0, or -1 with the trouble.  Nothing waits past its deadline; a wait that a signal
 * interrupts goes on, unless `verbs_interrupted` says that its handler has ended it.
 */
#ifndef RFAAS_VERBS_ROUTE_H
#define RFAAS_VERBS_ROUTE_H

#include "verbs.h"

#define RETRY_COUNT 6       /* so a peer that is gone is found out after some 2 s; 7, the most,
                             * is for ever to SoftRoCE (rxe_comp.c) */
#define RNR_RETRY_COUNT 6   /* 7 would be for ever; receives run out only at a peer that cheats */

int verbs_milliseconds_left(uint64_t deadline_ns);

int verbs_open_events(struct rdma_event_channel **events, verbs_trouble *trouble);

/* Wait for an event of `events` and compare it: 0 with *event to be acknowledged. */
int verbs_expect(struct rdma_event_channel *events, enum rdma_cm_event_type wanted,
                 const char *step, uint64_t deadline_ns, struct rdma_cm_event **event,
                 verbs_trouble *trouble);

/* Open *id and bind it to the device that leads from `from` (NULL: any) to `to`. */
int verbs_find_route(struct rdma_event_channel *events, struct rdma_cm_id **id,
                     const struct sockaddr *from, const struct sockaddr *to, uint64_t deadline_ns,
                     verbs_trouble *trouble);

#endif
