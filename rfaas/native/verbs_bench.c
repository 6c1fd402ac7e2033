/* The bare exchange that calls over a NIC are measured against: WRITE WITH IMM there and back,
 * between the same devices, with the same queues; no slot is chosen, no function called, nothing
 * counted.  See verbs.h and ../bench/verbs.py. */
#define _GNU_SOURCE
#include "verbs_lane.h"
#include "verbs_window.h"

#include <errno.h>

#define SPINS_PER_CHECK 64

static inline uint64_t stamp(void) {
#if defined(__x86_64__)
    __builtin_ia32_lfence();
#endif
    return ticks();
}

/* The peer: a lane's loop that answers each write by one of the same size. */
void verbs_bare_loop(worker_lane *lane) {
    verbs_lane *v = (verbs_lane *)lane;
    struct ibv_wc arrived;
    uint64_t last = ticks();
    while (!v->link.broken && !load_acquire(&lane->stop)) {
        int count = 0;
        for (int i = 0; i < SPINS_PER_CHECK && !count; i++)
            count = ibv_poll_cq(v->link.receive_cq, 1, &arrived);
        if (count) {
            if (count < 0 || arrived.status != IBV_WC_SUCCESS)
                break;
            verbs_write(&v->link, 0, 0, lane->ring.outputs, arrived.byte_len);
            verbs_replenish(&v->link, 1);
            last = ticks();
        } else if (ticks() - last >= lane->hot_ticks) { /* leave the core to what is compared */
            if (ibv_req_notify_cq(v->link.receive_cq, 0))
                break;
            verbs_doze(&v->link, v->stop_fd, 1000000);
            last = ticks() - lane->hot_ticks;
        }
    }
}

/* Round trips of `size` bytes; `samples` in ticks.  0, or -1 if the link broke. */
int verbs_bare(window *w, const uint8_t *data, uint32_t size, uint32_t count, uint64_t *samples) {
    verbs_link *link = w->carried_by;
    struct ibv_wc arrived;
    if (size > link->inline_max) {
        memcpy(w->ring.inputs, data, size);
        data = w->ring.inputs;
    }
    for (uint32_t i = 0; i < count; i++) {
        int got;
        const uint64_t start = stamp();
        if (verbs_write(link, 0, 0, data, size))
            return -1;
        while (!(got = ibv_poll_cq(link->receive_cq, 1, &arrived)))
            ;
        samples[i] = stamp() - start;
        if (got < 0 || arrived.status != IBV_WC_SUCCESS)
            return -1;
        verbs_replenish(link, 1);
    }
    return 0;
}

/* Throughput of back-to-back writes: `count` of `size` bytes, up to `depth` on their way; the
 * ticks from the first to the completion of the last, 0 if the link broke. */
uint64_t verbs_stream(window *w, uint32_t size, uint32_t depth, uint32_t count) {
    verbs_link *link = w->carried_by;
    struct ibv_sge sge = {(uintptr_t)w->ring.inputs, size, link->sge.lkey};
    struct ibv_send_wr *bad, write = {.opcode = IBV_WR_RDMA_WRITE,
                                      .send_flags = IBV_SEND_SIGNALED,
                                      .sg_list = &sge, .num_sge = 1,
                                      .wr.rdma = {link->remote_base, link->write.wr.rdma.rkey}};
    const uint64_t start = ticks();
    for (uint32_t sent = 0, done = 0; done < count;) {
        struct ibv_wc completed;
        while (sent < count && sent - done < depth) {
            if (ibv_post_send(link->qp, &write, &bad))
                return 0;
            sent++;
        }
        int got = ibv_poll_cq(link->send_cq, 1, &completed);
        if (got < 0 || (got && completed.status != IBV_WC_SUCCESS))
            return 0;
        done += (uint32_t)got;
    }
    return ticks() - start;
}
