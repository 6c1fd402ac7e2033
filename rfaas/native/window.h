/* The client's side of a ring: announce calls, collect results.
 *
 * A window belongs to one client process.  One thread at a time collects: it alone writes
 * `next_response` and turns CALL_IN_FLIGHT into CALL_DONE.  All else is done by one thread at
 * a time, too, but maybe while another one collects.  The caller (_window.pyx) sees to both.
 */
#ifndef RFAAS_WINDOW_H
#define RFAAS_WINDOW_H

#include "ring.h"

enum { CALL_FREE, CALL_IN_FLIGHT, CALL_DONE };

/* One slot as the client sees it. */
typedef struct {
    uint32_t state; /* CALL_*; read by threads that do not poll */
    uint32_t size, status, detail;
    uint32_t is_inline; /* the result is in `data`, else in the slot's output */
    uint32_t refs;      /* results and buffers that use the slot's memory */
    uint32_t abandoned; /* nobody wants the result: `window_sweep` frees the slot */
    uint32_t unused;
    uint8_t data[INLINE_BYTES_MAX] LINE_ALIGNED;
} window_call;

typedef struct window window;

/* What takes calls to a worker that shares no memory with us.  A window without one is a ring
 * that the worker reads itself, and costs one branch that is never taken. */
typedef struct {
    void (*put)(window *w, uint32_t slot, uint32_t function, const void *data, uint32_t size);
    int (*poll)(window *w); /* as window_poll */
    int (*doze)(window *w, uint64_t sleep_ns); /* sleep until something may have arrived; poll */
    void (*look)(window *w);  /* whether the worker has gone; each `yield_ns` of a spin */
    void (*close)(window *w); /* before the window's memory goes */
    uint64_t yield_ns; /* of spinning, then whoever shares the processor may run */
} window_carrier;

struct window {
    ring_map ring;
    uint32_t next_request, next_response; /* indices of cells, modulo 2^32 */
    uint32_t free_count, abandoned;
    window_call *calls; /* one per slot */
    uint32_t *free;     /* a stack: the slot used last is used next, while it is in cache */
    const window_carrier *carrier; /* NULL: shared memory */
    void *carried_by;              /* the carrier's own */
};

/* What `window_wait` says. */
enum {
    WAIT_DONE,   /* the slot's call is done */
    WAIT_AGAIN,  /* not yet */
    WAIT_ENDED,  /* the worker is gone and so is the result */
    WAIT_INVALID /* the worker answered nonsense: nothing of it can be believed */
};

int window_open(window *w, int fd, uint64_t offset, const char **what); /* 0 or an errno */
void window_close(window *w);

/* Collect what has arrived; returns the number of results, or -1 for nonsense. */
int window_poll(window *w);

/* Poll until the call in `slot` is done (UINT32_MAX: any call): spin for `spin_ticks`, then
 * sleep for at most `sleep_ns`. */
int window_wait(window *w, uint32_t slot, uint64_t spin_ticks, uint64_t sleep_ns);

/* Wait for another thread's poll to complete the call in `slot` (UINT32_MAX: just wait): spin
 * for `spin_ticks`, then sleep for `sleep_ns`, from which nobody wakes. */
int window_watch(window *w, uint32_t slot, uint64_t spin_ticks, uint64_t sleep_ns);

static inline uint32_t window_in_flight(const window *w) {
    return load_relaxed(&w->next_request) - load_acquire(&w->next_response);
}

static inline uint32_t window_state(const window *w, uint32_t slot) {
    return load_acquire(&w->calls[slot].state);
}

static inline uint32_t window_take(window *w) {
    return w->free_count ? w->free[--w->free_count] : UINT32_MAX;
}

static inline void window_free(window *w, uint32_t slot) {
    w->calls[slot].state = CALL_FREE;
    w->free[w->free_count++] = slot;
}

/* Nobody wants the slot's call any more.  Results and buffers may still use its memory. */
static inline void window_drop(window *w, uint32_t slot) {
    window_call *call = &w->calls[slot];
    if (window_state(w, slot) == CALL_IN_FLIGHT) {
        call->abandoned = 1;
        w->abandoned++;
    } else if (call->refs) {
        call->state = CALL_FREE;
    } else {
        window_free(w, slot);
    }
}

/* Free the slots of abandoned calls that are done by now. */
static inline void window_sweep(window *w) {
    for (uint32_t slot = 0; UNLIKELY(w->abandoned) && slot < w->ring.slots; slot++) {
        if (w->calls[slot].abandoned && window_state(w, slot) == CALL_DONE) {
            w->calls[slot].abandoned = 0;
            w->abandoned--;
            window_drop(w, slot);
        }
    }
}

/* Announce a call whose `size` bytes of input are at `data`, or (NULL) in the slot already. */
static inline void window_put(window *w, uint32_t slot, uint32_t function, const void *data,
                              uint32_t size) {
    if (UNLIKELY(w->carrier != NULL)) {
        w->carrier->put(w, slot, function, data, size);
        return;
    }
    ring_cell *cell = &w->ring.requests[w->next_request & w->ring.mask];
    const uint32_t seq = w->next_request + 1;
    w->calls[slot].state = CALL_IN_FLIGHT;
    __atomic_store_n(&w->next_request, seq, __ATOMIC_RELAXED);
    if (data && size <= INLINE_BYTES_MAX) {
        cell_put_inline(cell, seq, imm_make(slot, function, FLAG_INLINE), data, size, 0);
    } else {
        if (data)
            memcpy(ring_input(&w->ring, slot), data, size);
        cell_put(cell, seq, imm_make(slot, function, 0), size, 0);
    }
}

/* After the last `window_put` of a batch: wake the worker if it sleeps. */
static inline void window_ring(window *w) {
    fence();
    wake_if_asleep(&w->ring.header->worker_sleeps);
}

#endif
