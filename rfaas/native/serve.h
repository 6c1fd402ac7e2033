/* What every lane's loop does, however its calls arrive: time, call, count.
 *
 * Inlined into lane.c (calls that come over a ring) and verbs_lane.c (over a NIC).
 */
#ifndef RFAAS_SERVE_H
#define RFAAS_SERVE_H

#include "lane.h"

#define SPINS_PER_CHECK 64 /* spins between two looks at the clock and the stop flag */
#define YIELD_NS 50000     /* of idle spinning, then whoever shares the processor may run */

typedef struct {
    uint64_t start, executing, sleeping; /* ticks */
    uint64_t last_call;                  /* when the last call ended */
    uint64_t start_ns;
} lane_times;

static inline void lane_account(const worker_lane *lane, const lane_times *times, uint64_t now) {
    ring_account *line = lane->account;
    line->executing_ns = ticks_to_ns(times->executing);
    line->polling_ns = ticks_to_ns(now - times->start - times->executing - times->sleeping);
}

/* What a function reported, as status and detail; `size` becomes the bytes to send. */
typedef struct {
    uint32_t status, size, detail;
} outcome;

static inline outcome lane_call(const worker_lane *lane, uint32_t index, uint8_t *input,
                                uint32_t size, uint8_t *output,
                                uint32_t capacity) {
    const lane_function *function = &lane->functions[index];
    outcome result = {STATUS_OK, 0, 0};
    if (LIKELY(function->abi == 1)) {
        result.size = ((plain_function)function->address)(input, size, output);
    } else {
        rfaas_call call = {.args = input, .res = output, .size = size, .capacity = capacity};
        int32_t status = ((rfaas_function)function->address)(&call);
        result.size = call.result_size;
        if (UNLIKELY(status)) {
            result.status = STATUS_FUNCTION_FAILED;
            result.detail = (uint32_t)status;
            result.size = call.text_size <= capacity ? call.text_size : 0;
        }
    }
    if (UNLIKELY(result.size > capacity))
        result = (outcome){STATUS_OUTPUT_TOO_LARGE, 0, result.size};
    return result;
}

#endif
