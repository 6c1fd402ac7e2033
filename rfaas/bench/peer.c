/* The library that `rfaas bench` sends: `echo`, `sink` (takes all, returns
 * nothing), and `pong`, the bare exchange of peer.h; `leave` and `fault` for `bench faults`. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "peer.h"
#include "../native/ring.h"

#include "../../functions/rfaas.h"

RFAAS_EXPORT uint32_t echo(void *args, uint32_t size, void *res) {
    memcpy(res, args, size);
    return size;
}

RFAAS_EXPORT uint32_t sink(void *args, uint32_t size, void *res) {
    (void)args, (void)size, (void)res;
    return 0;
}

static void wait_for(const ring_cell *cell, uint32_t seq, pong_task *task) {
    if (task->mode == PONG_ASLEEP) {
        store_release(&task->sleeps, 1);
        fence();
        if (!cell_ready(cell, seq))
            futex_wait(&task->sleeps, 1, UINT64_MAX);
        store_release(&task->sleeps, 0);
    }
    while (!cell_ready(cell, seq))
        cpu_pause();
}

RFAAS_EXPORT uint32_t pong(void *args, uint32_t size, void *res) {
    pong_task *task = args;
    const ring_cell *requests = (const ring_cell *)((uint8_t *)args + PONG_CELL_OFFSET);
    ring_cell *responses = (ring_cell *)((uint8_t *)res + PONG_CELL_OFFSET);
    uint8_t data[INLINE_BYTES_MAX] LINE_ALIGNED;
    (void)size;
    for (uint32_t seq = 1; seq <= task->rounds; seq++) {
        const ring_cell *request = requests + seq % PONG_CELLS;
        ring_cell *response = responses + seq % PONG_CELLS;
        wait_for(request, seq, task);
        const uint32_t bytes = request->size;
        if (task->mode == PONG_BESIDE) {
            memcpy((uint8_t *)res + PONG_DATA_OFFSET, (uint8_t *)args + PONG_DATA_OFFSET, bytes);
            cell_put(response, seq, 0, bytes, 0);
        } else {
            cell_get_inline(request, data, bytes);
            cell_put_inline_padded(response, seq, imm_make(0, 0, FLAG_INLINE), data, bytes,
                                   0);
        }
    }
    return 0;
}

static void ignore_signals(void) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
}

/* Leaves daemons behind: in sessions of their own, deaf to signals; returns how many. */
RFAAS_EXPORT uint32_t leave(void *args, uint32_t size, void *res) {
    const leave_task *task = args;
    uint32_t left = 0;
    (void)size;
    prctl(PR_SET_NAME, task->name);
    for (uint32_t i = 0; i < task->daemons; i++) {
        int status = 1;
        const pid_t child = fork();
        if (!child) {
            setsid();
            const pid_t daemon = fork();
            if (daemon)
                _exit(daemon < 0);
            for (ignore_signals();;)
                pause();
        }
        left += child > 0 && waitpid(child, &status, 0) == child && !status;
    }
    memcpy(res, &left, sizeof left);
    return sizeof left;
}

RFAAS_EXPORT uint32_t fault(void *args, uint32_t size, void *res) {
    uint32_t kind = FAULT_ENDLESS;
    volatile uint8_t *volatile nowhere = NULL; /* which no compiler can tell */
    (void)res;
    memcpy(&kind, args, size < sizeof kind ? size : sizeof kind);
    close(STDERR_FILENO); /* where a crash would say its address, each time */
    if (kind == FAULT_SEGFAULT)
        *nowhere = 1;
    if (kind == FAULT_ABORT)
        abort();
    if (kind == FAULT_EXIT)
        exit(3);
    for (ignore_signals();;)
        cpu_pause();
}
