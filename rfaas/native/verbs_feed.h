/* What stands between a NIC and the ring of a worker that is not trusted with it.
 *
 *     client            endpoint: this loop                       worker: lane.c, as over shm
 *     WRITE WITH IMM -> inputs of the ring; completion
 *                       request cell: slot, function, size   ->   f(input, size, output) in place
 *     outputs        <- WRITE WITH IMM out of the ring       <-   response cell: slot, status, size
 *
 * The NIC reads and writes the ring's memory itself: no payload is copied, but a result that
 * came in the cell goes out of it, inline.  The worker maps the ring and nothing else, so each
 * word of it is checked here as if an enemy had written it; a response that makes no sense ends
 * the lane.  What is billed is counted here: executing is the time with a call at the worker.
 */
#ifndef RFAAS_VERBS_FEED_H
#define RFAAS_VERBS_FEED_H

#include "verbs_lane.h"

#define FEED_SLICE_NS 50000000 /* asleep on the ring, then it looks at its connection again */
#define GIVE_WAY_NS 50000      /* of yielding to a worker on the same processor, then it sleeps */
#define FAREWELL_NS 200000000  /* for the answers of a dead worker's calls to be taken */

typedef struct verbs_feed {
    uint32_t next_request, next_response; /* indices of cells, modulo 2^32 */
    uint32_t in_flight;                   /* calls at the worker */
    int shares;            /* its processor is the worker's: give way while that one calls */
    int turns;             /* its worker takes turns with others', and may say that it is busy */
    int nonsense;          /* the worker answered what it was never asked */
    uint64_t since;        /* ticks since the worker is busy, or since its last answer */
    uint8_t small[INLINE_BYTES_MAX] LINE_ALIGNED; /* a result of two lines, joined */
    uint8_t busy[];        /* per slot: its call is at the worker */
} verbs_feed;

verbs_feed *verbs_feed_new(const ring_map *ring, int shares); /* to be freed; NULL: no memory */

/* For worker_lane, in the place of verbs_lane_loop and verbs_lane_wake. */
void verbs_feed_loop(worker_lane *lane);
void verbs_feed_wake(worker_lane *lane);

#endif
