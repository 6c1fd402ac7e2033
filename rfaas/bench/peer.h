/* What the benchmark's client (native/bench.c) and its peer in the worker (peer.c) agree on.
 *
 * The raw exchange runs inside one call of `pong`: the function bounces flagged lines in the
 * memory of its own slot, with nothing of a call around them.  So raw and real calls are
 * measured between the same two pinned processes, over the same memory, in one run.
 *
 *     input + 0         pong_task
 *     input + 128       the request cells        output + 128     the response cells
 *     input + 4096      payload                  output + 4096    payload
 */
#ifndef RFAAS_BENCH_PEER_H
#define RFAAS_BENCH_PEER_H

#include <stdint.h>

#define PONG_CELL_OFFSET 128u
#define PONG_CELLS 16u
#define PONG_DATA_OFFSET 4096u

enum {
    PONG_INLINE, /* the payload travels in the cells */
    PONG_BESIDE, /* it lies beside them; the peer copies input to output, as echo does */
    PONG_ASLEEP  /* as PONG_INLINE, but the peer sleeps on a futex before each round */
};

typedef struct {
    uint32_t mode, rounds, size;
    uint32_t sleeps; /* futex of PONG_ASLEEP */
} pong_task;

/* What `leave` and `fault` take: bench/faults.py packs them. */
typedef struct {
    uint32_t daemons;
    char name[16]; /* of this thread and of the daemons, for ps(1) */
} leave_task;

enum { FAULT_SEGFAULT, FAULT_ABORT, FAULT_EXIT, FAULT_ENDLESS };

#endif
