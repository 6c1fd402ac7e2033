/* The worker's side of a ring: one thread that waits, calls, answers. */
#ifndef RFAAS_LANE_H
#define RFAAS_LANE_H

#include "../../functions/rfaas.h"
#include "ring.h"

#include <pthread.h>

typedef uint32_t (*plain_function)(void *args, uint32_t size, void *res);

typedef struct {
    void *address;
    uint32_t abi; /* 1: plain_function, 2: rfaas_function */
} lane_function;

#define HOT_ALWAYS UINT64_MAX

typedef struct worker_lane worker_lane;
struct worker_lane {
    ring_map ring;
    ring_account *account;          /* lent by the executor: one line of its page */
    const lane_function *functions; /* lent: lives as long as the process */
    uint32_t function_count;
    uint32_t stop;
    uint64_t hot_ticks; /* HOT_ALWAYS, 0: sleep at once, else ticks since the last call */
    int cpu;            /* to be pinned to; -1: anywhere */
    int turn_fd;        /* the lock of its processor, for lane_loop_shared; else unused */
    int started;
    pthread_t thread;
    void (*loop)(worker_lane *lane); /* what its thread runs, until `stop` is set */
    void (*wake)(worker_lane *lane); /* NULL, or how to wake that besides by the ring's futex */
};

void lane_loop(worker_lane *lane); /* calls come over the ring: the client, or what feeds it */
void lane_loop_shared(worker_lane *lane); /* the same on a processor that other workers share */

/* From now on a crash of this process says at which address; fault_stack: of this thread, also
 * where its own stack is full; fault_unstack: as this thread ends. */
void fault_report(void);
void fault_stack(void);
void fault_unstack(void);

int lane_start(worker_lane *lane); /* 0 or an errno */
void lane_stop(worker_lane *lane); /* returns when the thread has ended; not while it calls */

#endif
