/* The hot loop of a worker whose calls come over a NIC: poll, call, write.  See verbs.h.
 *
 * The input is where the client's NIC has put it, in the slot; the result goes out of the slot.
 * Nothing is copied but what goes inline into the send queue.
 */
#define _GNU_SOURCE
#include "verbs_lane.h"

#include "serve.h"

#include <errno.h>
#include <sched.h>

static void write_answer(verbs_lane *v, uint32_t slot, outcome result, uint8_t *output) {
    uint32_t size = result.size;
    if (UNLIKELY(result.status != STATUS_OK)) { /* text, then detail */
        if (size > v->link.slot_bytes - DETAIL_BYTES)
            size = v->link.slot_bytes - DETAIL_BYTES;
        memcpy(output + size, &result.detail, DETAIL_BYTES);
        size += DETAIL_BYTES;
    }
    verbs_write(&v->link, slot, imm_make(slot, result.status, 0), output, size);
}

static inline void serve(verbs_lane *v, const struct ibv_wc *request, lane_times *times) {
    const ring_map *ring = &v->lane.ring;
    ring_account *line = v->lane.account;
    const uint32_t imm = be32toh(request->imm_data), size = request->byte_len;
    const uint32_t slot = imm_slot(imm), function = imm_low(imm);
    if (UNLIKELY(request->opcode != IBV_WC_RECV_RDMA_WITH_IMM || slot >= ring->slots)) {
        verbs_break(&v->link, FAULT_PROTOCOL, (int)slot, 0); /* no slot to answer in */
        return;
    }
    uint8_t *output = ring_output(ring, slot);
    outcome result;
    if (UNLIKELY(size > ring->slot_bytes)) {
        result = (outcome){STATUS_REQUEST_INVALID, 0, size};
    } else if (UNLIKELY(function >= v->lane.function_count)) {
        result = (outcome){STATUS_FUNCTION_UNKNOWN, 0, function};
    } else {
        const uint64_t before = ticks();
        line->busy_since_ns = times->start_ns + ticks_to_ns(before - times->start);
        result = lane_call(&v->lane, function, ring_input(ring, slot), size, output,
                           (uint32_t)ring->slot_bytes);
        line->busy_since_ns = 0;
        times->executing += ticks() - before;
    }
    line->calls++; /* before the answer: what a client has seen is counted */
    line->failed += result.status != STATUS_OK;
    write_answer(v, slot, result, output);
    times->last_call = ticks();
    lane_account(&v->lane, times, times->last_call);
    verbs_replenish(&v->link, 1);
}

/* Sleep until a completion comes.  Arming and then looking once more loses none. */
static int doze(verbs_lane *v, struct ibv_wc *arrived, lane_times *times) {
    uint32_t *sleeps = &v->lane.ring.header->worker_sleeps;
    const uint64_t before = ticks();
    int count = 0;
    lane_account(&v->lane, times, before);
    store_release(sleeps, 1);
    if (ibv_req_notify_cq(v->link.receive_cq, 0))
        verbs_break(&v->link, FAULT_POST, EIO, 0);
    else if (!(count = ibv_poll_cq(v->link.receive_cq, POLL_BATCH, arrived)) &&
             !load_acquire(&v->lane.stop)) {
        verbs_doze(&v->link, v->stop_fd, UINT64_MAX);
        v->lane.account->wakeups++;
    }
    store_release(sleeps, 0);
    times->sleeping += ticks() - before;
    v->lane.account->sleeping_ns = ticks_to_ns(times->sleeping);
    return count;
}

/* The number of requests that came; 0 when the lane is to stop or its link is broken. */
static int lane_wait(verbs_lane *v, struct ibv_wc *arrived, lane_times *times) {
    const uint64_t yield_ticks = ns_to_ticks(VERBS_YIELD_NS);
    uint64_t yielded = times->last_call;
    int count;
    for (;;) {
        for (int i = 0; i < SPINS_PER_CHECK && v->lane.hot_ticks; i++) {
            if ((count = ibv_poll_cq(v->link.receive_cq, POLL_BATCH, arrived)))
                return count;
            cpu_pause();
        }
        if ((count = ibv_poll_cq(v->link.receive_cq, POLL_BATCH, arrived)))
            return count;
        if (UNLIKELY(load_acquire(&v->lane.stop) || v->link.broken))
            return 0;
        uint64_t now = ticks();
        if (now - times->last_call < v->lane.hot_ticks)
            lane_account(&v->lane, times, now);
        else if ((count = doze(v, arrived, times)))
            return count;
        if (now - yielded >= yield_ticks) {
            sched_yield();
            yielded = ticks();
        }
    }
}

void verbs_lane_loop(worker_lane *lane) {
    verbs_lane *v = (verbs_lane *)lane;
    struct ibv_wc arrived[POLL_BATCH];
    lane_times times = {.start = ticks(), .start_ns = monotonic_ns()};
    times.last_call = times.start;
    while (!v->link.broken) {
        int count = ibv_poll_cq(v->link.receive_cq, POLL_BATCH, arrived);
        if (!count && !(count = lane_wait(v, arrived, &times)))
            break;
        if (UNLIKELY(count < 0))
            verbs_break(&v->link, FAULT_POST, EIO, 0);
        for (int i = 0; i < count && !v->link.broken; i++) {
            if (UNLIKELY(arrived[i].status != IBV_WC_SUCCESS))
                verbs_flushed(&v->link, &arrived[i]);
            else
                serve(v, &arrived[i], &times);
        }
    }
    const uint64_t one = 1;
    ssize_t written = write(v->notice_fd, &one, sizeof one); /* its counter cannot overflow */
    (void)written;
}

void verbs_lane_wake(worker_lane *lane) {
    const uint64_t one = 1;
    ssize_t written = write(((verbs_lane *)lane)->stop_fd, &one, sizeof one);
    (void)written;
}
