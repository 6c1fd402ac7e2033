/* The benchmark's native loops.  See bench.h and ../bench/peer.h. */
#include "bench.h"

#include "../bench/peer.h"

#define SPIN_FOR_EVER UINT64_MAX

/* The counter once all before it is done: without the fence the processor reads it while it
 * still waits for the answer, and round trips of 20 ns are seen. */
static inline uint64_t stamp(void) {
#if defined(__x86_64__)
    __builtin_ia32_lfence();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
    return ticks();
}

static inline void idle(const uint32_t *sleeps, uint64_t idle_ticks) {
    if (!idle_ticks)
        return;
    while (!load_acquire(sleeps))
        cpu_pause();
    for (uint64_t start = ticks(); ticks() - start < idle_ticks;)
        cpu_pause();
}

static inline void collect_result(window *w, uint32_t slot, uint8_t *data, int copy_out) {
    window_call *call = &w->calls[slot];
    if (copy_out && !call->is_inline)
        memcpy(data, ring_output(&w->ring, slot), call->size);
    call->state = CALL_FREE;
}

int bench_calls(window *w, uint32_t slot, uint32_t function, uint8_t *data, uint32_t size,
                int copy_out, uint64_t idle_ticks, uint32_t count, uint64_t *samples) {
    for (uint32_t i = 0; i < count; i++) {
        idle(&w->ring.header->worker_sleeps, idle_ticks);
        const uint64_t start = stamp();
        window_put(w, slot, function, data, size);
        window_ring(w);
        int end = window_wait(w, slot, SPIN_FOR_EVER, 0);
        if (end != WAIT_DONE)
            return end;
        collect_result(w, slot, data, copy_out);
        samples[i] = stamp() - start;
    }
    return WAIT_DONE;
}

int bench_raw(window *w, uint32_t slot, uint32_t function, uint32_t mode, uint8_t *data,
              uint32_t size, int copy_out, uint64_t idle_ticks, uint32_t count, uint64_t *samples) {
    uint8_t *input = ring_input(&w->ring, slot), *output = ring_output(&w->ring, slot);
    pong_task *task = (pong_task *)input;
    ring_cell *requests = (ring_cell *)(input + PONG_CELL_OFFSET);
    ring_cell *responses = (ring_cell *)(output + PONG_CELL_OFFSET);
    uint8_t result[INLINE_BYTES_MAX] LINE_ALIGNED;
    memset(requests, 0, PONG_CELLS * sizeof *requests);
    memset(responses, 0, PONG_CELLS * sizeof *responses);
    *task = (pong_task){.mode = mode, .rounds = count, .size = size};
    window_put(w, slot, function, NULL, sizeof *task);
    window_ring(w);
    for (uint32_t seq = 1; seq <= count; seq++) {
        idle(&task->sleeps, idle_ticks);
        ring_cell *request = requests + seq % PONG_CELLS;
        const ring_cell *response = responses + seq % PONG_CELLS;
        const uint64_t start = stamp();
        if (mode == PONG_BESIDE) {
            if (data)
                memcpy(input + PONG_DATA_OFFSET, data, size);
            cell_put(request, seq, 0, size, 0);
        } else {
            cell_put_inline(request, seq, imm_make(0, 0, FLAG_INLINE), data, size, 0);
        }
        if (mode == PONG_ASLEEP) {
            fence();
            wake_if_asleep(&task->sleeps);
        }
        while (!cell_ready(response, seq)) {
            cpu_pause();
            if (UNLIKELY(load_relaxed(&w->ring.header->state) == RING_ENDED))
                return WAIT_ENDED;
        }
        if (mode != PONG_BESIDE)
            cell_get_inline(response, result, size);
        else if (copy_out)
            memcpy(data, output + PONG_DATA_OFFSET, size);
        samples[seq - 1] = stamp() - start;
    }
    int end = window_wait(w, slot, SPIN_FOR_EVER, 0);
    w->calls[slot].state = CALL_FREE;
    return end;
}

uint64_t bench_pipeline(window *w, uint32_t function, const uint8_t *data, uint32_t size,
                        uint32_t inflight, uint64_t count) {
    uint64_t sent = 0, done = 0;
    const uint64_t start = ticks();
    while (done < count) {
        uint32_t batch = 0;
        while (sent < count && sent - done < inflight && w->free_count) {
            window_put(w, window_take(w), function, data, size);
            sent++;
            batch++;
        }
        if (batch)
            window_ring(w);
        if (window_wait(w, UINT32_MAX, SPIN_FOR_EVER, 0) != WAIT_DONE)
            return 0;
        for (uint32_t slot = 0; slot < w->ring.slots; slot++) {
            if (w->calls[slot].state == CALL_DONE) {
                window_free(w, slot);
                done++;
            }
        }
    }
    return ticks() - start;
}
