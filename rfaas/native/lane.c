/* The hot loop of a worker: wait on a ring, call, answer on the ring.
 *
 * Per call it reads one or two cache lines, runs the function on memory of the
 * slot, and writes one or two lines.  Between calls it spins, and after
 * `hot_ticks` without one it sleeps on the ring's futex.
 */
#define _GNU_SOURCE
#include "serve.h"

#include <errno.h>
#include <sched.h>
#include <sys/file.h>

/* Sleep until the client announces something.  The order "say that we sleep, fence, look
 * again" pairs with the client's "announce, fence, look who sleeps". */
static void lane_sleep(worker_lane *lane, const ring_cell *cell, uint32_t seq, lane_times *times) {
    uint32_t *sleeps = &lane->ring.header->worker_sleeps;
    uint64_t before = ticks();
    lane_account(lane, times, before);
    store_release(sleeps, 1);
    fence();
    if (!cell_ready(cell, seq) && !load_acquire(&lane->stop)) {
        futex_wait(sleeps, 1, UINT64_MAX);
        lane->account->wakeups++;
    }
    store_release(sleeps, 0);
    times->sleeping += ticks() - before;
    lane->account->sleeping_ns = ticks_to_ns(times->sleeping);
}

/* 1 when the cell is there, 0 when the lane is to stop. */
static int lane_wait(worker_lane *lane, const ring_cell *cell, uint32_t seq, lane_times *times) {
    /* The client may have said that it sleeps just as we answered: now there is time to look
     * behind a fence, and no wake-up is lost. */
    fence();
    wake_if_asleep(&lane->ring.header->client_sleeps);
    const uint64_t yield_ticks = ns_to_ticks(YIELD_NS);
    uint64_t yielded = times->last_call;
    for (;;) {
        for (int i = 0; i < SPINS_PER_CHECK && lane->hot_ticks; i++) {
            if (cell_ready(cell, seq))
                return 1;
            cpu_pause();
        }
        if (cell_ready(cell, seq))
            return 1;
        if (UNLIKELY(load_acquire(&lane->stop)))
            return 0;
        uint64_t now = ticks();
        if (now - times->last_call >= lane->hot_ticks)
            lane_sleep(lane, cell, seq, times);
        else
            lane_account(lane, times, now);
        if (now - yielded >= yield_ticks) {
            sched_yield();
            yielded = ticks();
        }
    }
}

/* `shared` is a constant: the loop of a lane that owns its processor has nothing of it. */
__attribute__((always_inline)) static inline void
lane_serve(worker_lane *lane, const ring_cell *cell, uint32_t index, lane_times *times,
           const int shared) {
    const ring_map *ring = &lane->ring;
    /* Each word is read once: what was checked is what is used, whatever the client writes. */
    const uint32_t seq = index + 1, imm = load_relaxed(&cell->imm);
    const uint32_t size = load_relaxed(&cell->size);
    const uint32_t slot = imm_slot(imm), function = imm_low(imm);
    const int is_inline = imm_flags(imm) & FLAG_INLINE;
    ring_cell *reply = &ring->responses[index & ring->mask];
    ring_account *line = lane->account;
    outcome result;
    if (UNLIKELY(slot >= ring->slots || size > (is_inline ? INLINE_BYTES_MAX : ring->slot_bytes))) {
        result = (outcome){STATUS_REQUEST_INVALID, 0, slot >= ring->slots ? slot : size};
    } else if (UNLIKELY(function >= lane->function_count)) {
        result = (outcome){STATUS_FUNCTION_UNKNOWN, 0, function};
    } else {
        uint8_t *input = ring_input(ring, slot), *output = ring_output(ring, slot);
        if (is_inline)
            cell_get_inline(cell, input, size);
        const uint64_t before = ticks();
        line->busy_since_ns = times->start_ns + ticks_to_ns(before - times->start);
        result = lane_call(lane, function, input, size, output, (uint32_t)ring->slot_bytes);
        if (shared) /* before the answer: who has it may find the processor free */
            flock(lane->turn_fd, LOCK_UN);
        line->calls++; /* before the answer: what a client has seen is counted */
        line->failed += result.status != STATUS_OK;
        if (result.size <= INLINE_BYTES_MAX)
            cell_put_inline_padded(reply, seq, imm_make(slot, result.status, FLAG_INLINE), output,
                                   result.size, result.detail);
        else
            cell_put(reply, seq, imm_make(slot, result.status, 0), result.size, result.detail);
        const uint64_t after = ticks();
        line->busy_since_ns = 0;
        times->executing += after - before;
        times->last_call = after;
        goto answered;
    }
    line->calls++;
    line->failed++;
    cell_put(reply, seq, imm_make(slot, result.status, FLAG_INLINE), 0, result.detail);
    times->last_call = ticks();
answered:
    wake_if_asleep(&ring->header->client_sleeps);
    lane_account(lane, times, times->last_call);
}

/* A function that calls pthread_exit(3) would leave a lane that nobody serves: the process
 * ends instead, and its status says so. */
static void thread_exited(void *unused) {
    (void)unused;
    static const char text[] = "rfaas worker: a function called pthread_exit()\n";
    ssize_t written = write(2, text, sizeof text - 1);
    (void)written;
    _exit(72);
}

void lane_loop(worker_lane *lane) {
    uint32_t index = lane->ring.header->first;
    lane_times times = {.start = ticks(), .start_ns = monotonic_ns()};
    times.last_call = times.start;
    for (;; index++) {
        const ring_cell *cell = &lane->ring.requests[index & lane->ring.mask];
        if (!cell_ready(cell, index + 1) && !lane_wait(lane, cell, index + 1, &times))
            break;
        lane_serve(lane, cell, index, &times, 0);
    }
}

/* Turn a request away: nothing of it is run, and its client asks again. */
static void lane_refuse(worker_lane *lane, const ring_cell *cell, uint32_t index,
                        lane_times *times) {
    const ring_map *ring = &lane->ring;
    const uint32_t slot = imm_slot(load_relaxed(&cell->imm));
    lane->account->busy++; /* before the answer, as calls are */
    cell_put(&ring->responses[index & ring->mask], index + 1,
             imm_make(slot, STATUS_BUSY, FLAG_INLINE), 0, 0);
    times->last_call = ticks();
    wake_if_asleep(&ring->header->client_sleeps);
    lane_account(lane, times, times->last_call);
}

void lane_loop_shared(worker_lane *lane) {
    uint32_t index = lane->ring.header->first;
    lane_times times = {.start = ticks(), .start_ns = monotonic_ns()};
    times.last_call = times.start;
    for (;; index++) {
        const ring_cell *cell = &lane->ring.requests[index & lane->ring.mask];
        if (!cell_ready(cell, index + 1) && !lane_wait(lane, cell, index + 1, &times))
            break;
        if (flock(lane->turn_fd, LOCK_EX | LOCK_NB)) {
            lane_refuse(lane, cell, index, &times);
            continue;
        }
        lane_serve(lane, cell, index, &times, 1);
        /* What lane_serve refused had no call after which the lock was given up. */
        flock(lane->turn_fd, LOCK_UN);
    }
}

static void *lane_main(void *argument) {
    worker_lane *lane = argument;
    fault_stack();
    pthread_cleanup_push(thread_exited, NULL);
    lane->loop(lane);
    pthread_cleanup_pop(0);
    fault_unstack();
    return NULL;
}

int lane_start(worker_lane *lane) {
    pthread_attr_t attributes;
    int error = pthread_attr_init(&attributes);
    if (error)
        return error;
    if (lane->cpu >= 0) {
        cpu_set_t cpus;
        CPU_ZERO(&cpus);
        CPU_SET(lane->cpu, &cpus);
        error = pthread_attr_setaffinity_np(&attributes, sizeof cpus, &cpus);
    }
    if (!error)
        error = pthread_create(&lane->thread, &attributes, lane_main, lane);
    lane->started = !error;
    pthread_attr_destroy(&attributes);
    return error;
}

void lane_stop(worker_lane *lane) {
    if (!lane->started)
        return;
    store_release(&lane->stop, 1);
    store_release(&lane->ring.header->worker_sleeps, 0);
    futex_wake(&lane->ring.header->worker_sleeps);
    if (lane->wake)
        lane->wake(lane);
    pthread_join(lane->thread, NULL);
    lane->started = 0;
}
