/* The library that `rfaas bench` sends: `echo`, `sink` (takes all, returns
 * nothing), and `pong`, the bare exchange of peer.h. */
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
