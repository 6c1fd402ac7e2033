/* The client's waiting: collect results, spin, sleep.  See window.h. */
#include "window.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>

#define SPINS_PER_CHECK 64
#define YIELD_NS 20000 /* of spinning, then a worker that shares our processor may run */

int window_open(window *w, int fd, uint64_t offset, const char **what) {
    int error = ring_open(&w->ring, fd, offset, what);
    if (error)
        return error;
    const uint32_t slots = w->ring.slots;
    *what = "find memory for its window";
    w->calls = aligned_alloc(LINE_BYTES, slots * sizeof *w->calls);
    w->free = malloc(slots * sizeof *w->free);
    if (!w->calls || !w->free) {
        window_close(w);
        return ENOMEM;
    }
    memset(w->calls, 0, slots * sizeof *w->calls);
    w->next_request = w->next_response = w->ring.header->first;
    w->free_count = w->abandoned = 0;
    w->carrier = NULL;
    for (uint32_t slot = slots; slot-- > 0;)
        w->free[w->free_count++] = slot;
    return 0;
}

void window_close(window *w) {
    if (w->carrier)
        w->carrier->close(w);
    w->carrier = NULL;
    ring_close(&w->ring);
    free(w->calls);
    free(w->free);
    w->calls = NULL;
    w->free = NULL;
}

static inline const ring_cell *next_cell(const window *w) {
    return &w->ring.responses[w->next_response & w->ring.mask];
}

/* Take one response that is there; 0, or -1 if it makes no sense. */
static inline int collect(window *w, const ring_cell *cell) {
    /* Each word is read once: what was checked is what is used, whatever the worker writes. */
    const uint32_t imm = load_relaxed(&cell->imm), size = load_relaxed(&cell->size);
    const uint32_t slot = imm_slot(imm);
    const uint32_t is_inline = imm_flags(imm) & FLAG_INLINE;
    if (UNLIKELY(slot >= w->ring.slots || w->calls[slot].state != CALL_IN_FLIGHT ||
                 size > (is_inline ? INLINE_BYTES_MAX : w->ring.slot_bytes)))
        return -1;
    window_call *call = &w->calls[slot];
    call->size = size;
    call->status = imm_low(imm);
    call->detail = cell->detail;
    call->is_inline = is_inline;
    if (is_inline)
        cell_get_inline(cell, call->data, size);
    store_release(&call->state, CALL_DONE);
    store_release(&w->next_response, w->next_response + 1); /* who sees this sees the states */
    return 0;
}

int window_poll(window *w) {
    int count = 0;
    if (UNLIKELY(w->carrier != NULL))
        return w->carrier->poll(w);
    while (window_in_flight(w) && cell_ready(next_cell(w), w->next_response + 1)) {
        if (collect(w, next_cell(w)))
            return -1;
        count++;
    }
    return count;
}

static inline int satisfied(const window *w, uint32_t slot, int collected) {
    return slot == UINT32_MAX ? collected > 0 : w->calls[slot].state == CALL_DONE;
}

/* The same as below where responses do not come into memory by themselves. */
static int carried_wait(window *w, uint32_t slot, uint64_t spin_ticks, uint64_t sleep_ns) {
    const uint64_t start = ticks();
    uint64_t yielded = start;
    for (;;) {
        for (int i = 0; i < SPINS_PER_CHECK; i++) {
            int collected = w->carrier->poll(w);
            if (UNLIKELY(collected < 0))
                return WAIT_INVALID;
            if (satisfied(w, slot, collected))
                return WAIT_DONE;
            cpu_pause();
        }
        if (UNLIKELY(load_acquire(&w->ring.header->state) == RING_ENDED))
            return WAIT_ENDED;
        const uint64_t now = ticks();
        if (now - start >= spin_ticks)
            break;
        if (ticks_to_ns(now - yielded) >= w->carrier->yield_ns) {
            w->carrier->look(w);
            sched_yield();
            yielded = ticks();
        }
    }
    if (!sleep_ns)
        return WAIT_AGAIN;
    const int collected = w->carrier->doze(w, sleep_ns);
    if (UNLIKELY(collected < 0))
        return WAIT_INVALID;
    return satisfied(w, slot, collected) ? WAIT_DONE : WAIT_AGAIN;
}

int window_wait(window *w, uint32_t slot, uint64_t spin_ticks, uint64_t sleep_ns) {
    if (UNLIKELY(w->carrier != NULL))
        return carried_wait(w, slot, spin_ticks, sleep_ns);
    uint32_t *sleeps = &w->ring.header->client_sleeps;
    const uint64_t start = ticks();
    uint64_t now, yielded = start;
    for (;;) {
        for (int i = 0; i < SPINS_PER_CHECK; i++) {
            if (cell_ready(next_cell(w), w->next_response + 1)) {
                int collected = window_poll(w);
                if (UNLIKELY(collected < 0))
                    return WAIT_INVALID;
                if (satisfied(w, slot, collected))
                    return WAIT_DONE;
            }
            cpu_pause();
        }
        if (UNLIKELY(load_acquire(&w->ring.header->state) == RING_ENDED)) {
            int collected = window_poll(w);
            return collected < 0                     ? WAIT_INVALID
                   : satisfied(w, slot, collected) ? WAIT_DONE
                                                   : WAIT_ENDED;
        }
        now = ticks();
        if (now - start >= spin_ticks)
            break;
        if (ticks_to_ns(now - yielded) >= YIELD_NS) {
            sched_yield();
            yielded = ticks();
        }
    }
    if (!sleep_ns)
        return WAIT_AGAIN;
    store_release(sleeps, 1);
    fence();
    if (load_acquire(&next_cell(w)->seq0) != w->next_response + 1 &&
        load_acquire(&w->ring.header->state) != RING_ENDED)
        futex_wait(sleeps, 1, sleep_ns);
    store_release(sleeps, 0);
    int collected = window_poll(w);
    if (UNLIKELY(collected < 0))
        return WAIT_INVALID;
    return satisfied(w, slot, collected) ? WAIT_DONE : WAIT_AGAIN;
}

int window_watch(window *w, uint32_t slot, uint64_t spin_ticks, uint64_t sleep_ns) {
    const struct timespec nap = {(time_t)(sleep_ns / 1000000000u), (long)(sleep_ns % 1000000000u)};
    const uint64_t start = ticks();
    while (ticks() - start < spin_ticks) {
        for (int i = 0; i < SPINS_PER_CHECK; i++) {
            if (slot != UINT32_MAX && window_state(w, slot) == CALL_DONE)
                return WAIT_DONE;
            cpu_pause();
        }
        sched_yield(); /* that thread may be waiting for our processor */
    }
    if (sleep_ns)
        clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL); /* cut short by a signal, as it should */
    return slot != UINT32_MAX && window_state(w, slot) == CALL_DONE ? WAIT_DONE : WAIT_AGAIN;
}
