/* The worker's side of a lane over a NIC: the core that polls it calls the function. */
#ifndef RFAAS_VERBS_LANE_H
#define RFAAS_VERBS_LANE_H

#include "lane.h"
#include "verbs.h"

typedef struct {
    worker_lane lane; /* first: its loop and wake find the rest behind it */
    verbs_link link;
    int stop_fd;   /* eventfd(2) of this lane: wakes it */
    int notice_fd; /* eventfd(2) of the process: says that a lane's loop has ended */
    struct verbs_feed *feed; /* of an endpoint's lane (verbs_feed.h), else NULL */
} verbs_lane;

/* For worker_lane. */
void verbs_lane_loop(worker_lane *lane);
void verbs_lane_wake(worker_lane *lane);
void verbs_bare_loop(worker_lane *lane); /* verbs_bench.c: answers without a call */

#endif
