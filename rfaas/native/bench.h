/* Loops that drive a lane from native code, so that the lane is measured and not Python. */
#ifndef RFAAS_BENCH_H
#define RFAAS_BENCH_H

#include "window.h"

/* Each loop fills `samples` with the ticks of `count` round trips and returns 0, or a WAIT_* of
 * window.h when the worker is gone.  `data` is the caller's input of `size` bytes, or NULL where
 * it lies in the slot already; with `copy_out`, results are copied to it, too. */
int bench_calls(window *w, uint32_t slot, uint32_t function, uint8_t *data, uint32_t size,
                int copy_out, uint64_t idle_ticks, uint32_t count, uint64_t *samples);

/* The same bytes without a call: `slot` runs `pong` (rfaas/bench/peer.c). */
int bench_raw(window *w, uint32_t slot, uint32_t function, uint32_t mode, uint8_t *data,
              uint32_t size, int copy_out, uint64_t idle_ticks, uint32_t count, uint64_t *samples);

/* `count` calls with up to `inflight` at once; the ticks from first to last, 0 if it broke. */
uint64_t bench_pipeline(window *w, uint32_t function, const uint8_t *data, uint32_t size,
                        uint32_t inflight, uint64_t count);

#endif
