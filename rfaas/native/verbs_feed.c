/* The hot loop of an endpoint: completion to request cell, response cell to write.
 *
 * See verbs_feed.h.  Hot, it looks at the NIC and, with calls at the worker, at the ring in
 * turn.  It sleeps on the completion channel, or, with calls at the worker, on the ring: what
 * comes over the NIC meanwhile can wait, since the worker runs one call at a time.
 */
#define _GNU_SOURCE
#include "verbs_feed.h"

#include "serve.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>

verbs_feed *verbs_feed_new(const ring_map *ring, int shares) {
    const size_t bytes = sizeof(verbs_feed) + ring->slots;
    verbs_feed *feed = aligned_alloc(LINE_BYTES, (bytes + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES);
    if (!feed)
        return NULL;
    memset(feed, 0, bytes);
    feed->next_request = feed->next_response = ring->header->first;
    feed->shares = shares;
    return feed;
}

/* Text, if any, stands in the slot's output: the detail goes behind it, as in verbs_lane.c. */
static void write_failure(verbs_lane *v, uint32_t slot, uint32_t status, uint32_t size,
                          uint32_t detail) {
    uint8_t *output = ring_output(&v->lane.ring, slot);
    if (size > v->link.slot_bytes - DETAIL_BYTES)
        size = v->link.slot_bytes - DETAIL_BYTES;
    memcpy(output + size, &detail, DETAIL_BYTES);
    verbs_write(&v->link, slot, imm_make(slot, status, 0), output, size + DETAIL_BYTES);
}

/* Announce a request whose input is in the ring already. */
static inline void announce(verbs_lane *v, const struct ibv_wc *request, lane_times *times) {
    const ring_map *ring = &v->lane.ring;
    verbs_feed *feed = v->feed;
    const uint32_t imm = be32toh(request->imm_data), size = request->byte_len;
    const uint32_t slot = imm_slot(imm);
    if (UNLIKELY(request->opcode != IBV_WC_RECV_RDMA_WITH_IMM || slot >= ring->slots ||
                 feed->busy[slot])) {
        verbs_break(&v->link, FAULT_PROTOCOL, (int)slot, 0);
        return;
    }
    if (UNLIKELY(size > ring->slot_bytes)) {
        v->lane.account->calls++;
        v->lane.account->failed++;
        write_failure(v, slot, STATUS_REQUEST_INVALID, 0, size);
        return;
    }
    feed->busy[slot] = 1;
    if (!feed->in_flight++) {
        feed->since = times->last_call;
        v->lane.account->busy_since_ns = times->start_ns + ticks_to_ns(feed->since - times->start);
    }
    ring_cell *cell = &ring->requests[feed->next_request & ring->mask];
    cell_put(cell, ++feed->next_request, imm_make(slot, imm_low(imm), 0), size, 0);
}

static void take(verbs_lane *v, const struct ibv_wc *arrived, int count, lane_times *times) {
    if (UNLIKELY(count < 0)) {
        verbs_break(&v->link, FAULT_POST, EIO, 0);
        return;
    }
    times->last_call = ticks();
    for (int i = 0; i < count; i++) {
        if (UNLIKELY(arrived[i].status != IBV_WC_SUCCESS)) {
            verbs_flushed(&v->link, &arrived[i]);
            return;
        }
        announce(v, &arrived[i], times);
    }
    fence();
    wake_if_asleep(&v->lane.ring.header->worker_sleeps);
    verbs_replenish(&v->link, (uint32_t)count);
}

/* Write one response that is there to the client. */
static inline void answer(verbs_lane *v, const ring_cell *cell, lane_times *times) {
    const ring_map *ring = &v->lane.ring;
    verbs_feed *feed = v->feed;
    ring_account *line = v->lane.account;
    /* Each word is read once: what was checked is what is used, whatever the worker writes. */
    const uint32_t imm = load_relaxed(&cell->imm), size = load_relaxed(&cell->size);
    const uint32_t slot = imm_slot(imm), status = imm_low(imm);
    const uint32_t is_inline = imm_flags(imm) & FLAG_INLINE;
    if (UNLIKELY(slot >= ring->slots || !feed->busy[slot] ||
                 size > (is_inline ? INLINE_BYTES_MAX : ring->slot_bytes))) {
        feed->nonsense = 1;
        return;
    }
    feed->busy[slot] = 0;
    feed->in_flight--;
    feed->next_response++;
    const uint64_t now = times->last_call = ticks();
    times->executing += now - feed->since;
    feed->since = now;
    line->busy_since_ns = feed->in_flight ? times->start_ns + ticks_to_ns(now - times->start) : 0;
    if (UNLIKELY(status != STATUS_OK)) { /* counted before the answer: what a client has seen is */
        const uint64_t is_call = status != STATUS_BUSY || !feed->turns;
        line->calls += is_call;
        line->failed += is_call;
        line->busy += !is_call;
        write_failure(v, slot, status, size, load_relaxed(&cell->detail));
    } else {
        line->calls++;
        const uint8_t *data = ring_output(ring, slot);
        if (is_inline && size <= v->link.inline_max) { /* the lines are here already */
            data = cell->data0;
            if (size > DATA0_BYTES) {
                cell_get_inline(cell, feed->small, size);
                data = feed->small;
            }
        }
        verbs_write(&v->link, slot, imm_make(slot, STATUS_OK, 0), data, size);
    }
    lane_account(&v->lane, times, now);
}

static inline const ring_cell *next_cell(const verbs_lane *v) {
    return &v->lane.ring.responses[v->feed->next_response & v->lane.ring.mask];
}

/* Whether there was a response. */
static inline int give(verbs_lane *v, lane_times *times) {
    const ring_cell *cell = next_cell(v);
    if (!v->feed->in_flight || !cell_ready(cell, v->feed->next_response + 1))
        return 0;
    answer(v, cell, times);
    return 1;
}

/* With calls at the worker: sleep until it answers.  Paired as in lane.c and window.c. */
static void rest(verbs_lane *v) {
    uint32_t *sleeps = &v->lane.ring.header->client_sleeps;
    store_release(sleeps, 1);
    fence();
    if (!cell_ready(next_cell(v), v->feed->next_response + 1) && !load_acquire(&v->lane.stop) &&
        load_acquire(&v->lane.ring.header->state) != RING_ENDED)
        futex_wait(sleeps, 1, FEED_SLICE_NS);
    store_release(sleeps, 0);
}

/* With none: sleep until a request comes.  Arming and then looking once more loses none. */
static void doze(verbs_lane *v, lane_times *times) {
    struct ibv_wc arrived[POLL_BATCH];
    const uint64_t before = ticks();
    int count = 0;
    lane_account(&v->lane, times, before);
    if (ibv_req_notify_cq(v->link.receive_cq, 0))
        verbs_break(&v->link, FAULT_POST, EIO, 0);
    else if (!(count = ibv_poll_cq(v->link.receive_cq, POLL_BATCH, arrived)) &&
             !load_acquire(&v->lane.stop)) {
        verbs_doze(&v->link, v->stop_fd, UINT64_MAX);
        v->lane.account->wakeups++;
    }
    times->sleeping += ticks() - before;
    v->lane.account->sleeping_ns = ticks_to_ns(times->sleeping);
    if (count)
        take(v, arrived, count, times);
}

/* Nothing has come for a while: 0 when the loop is to end. */
static int look(verbs_lane *v, lane_times *times, uint64_t *yielded) {
    verbs_feed *feed = v->feed;
    if (UNLIKELY(load_acquire(&v->lane.stop) || v->link.broken))
        return 0;
    if (UNLIKELY(load_acquire(&v->lane.ring.header->state) == RING_ENDED))
        return give(v, times); /* what it answered before it died */
    const uint64_t now = ticks();
    const uint64_t idle = now - times->last_call;
    const uint64_t busy = *yielded > times->last_call ? *yielded : times->last_call;
    if (feed->in_flight && feed->shares && idle < ns_to_ticks(GIVE_WAY_NS)) {
        sched_yield(); /* to the worker, which sleeps when it has answered */
    } else if (feed->in_flight && (feed->shares || idle >= v->lane.hot_ticks)) {
        rest(v);
    } else if (idle >= v->lane.hot_ticks) {
        doze(v, times);
    } else {
        if (!feed->in_flight)
            lane_account(&v->lane, times, now);
        if (now - busy >= ns_to_ticks(VERBS_YIELD_NS)) {
            sched_yield();
            *yielded = ticks();
        }
    }
    return 1;
}

/* Answer what the worker never will, so that nobody waits for it. */
static void give_up(verbs_lane *v) {
    verbs_feed *feed = v->feed;
    const uint64_t until_ns = monotonic_ns() + FAREWELL_NS;
    v->link.signal_mask = 0; /* each write says when it was taken */
    for (uint32_t slot = 0; slot < v->lane.ring.slots && feed->in_flight; slot++) {
        if (feed->busy[slot]) {
            feed->busy[slot] = 0;
            feed->in_flight--;
            write_failure(v, slot, STATUS_WORKER_CRASHED, 0, 0);
        }
    }
    while (v->link.retired != v->link.sent && !verbs_reap(&v->link, 0) &&
           monotonic_ns() < until_ns)
        sched_yield();
    verbs_break(&v->link, FAULT_WORKER, feed->nonsense, 0);
}

void verbs_feed_loop(worker_lane *lane) {
    verbs_lane *v = (verbs_lane *)lane;
    verbs_feed *feed = v->feed;
    struct ibv_wc arrived[POLL_BATCH];
    lane_times times = {.start = ticks(), .start_ns = monotonic_ns()};
    uint64_t yielded = times.last_call = times.start;
    uint32_t spins = 0;
    while (!v->link.broken && !feed->nonsense) {
        const int count = ibv_poll_cq(v->link.receive_cq, POLL_BATCH, arrived);
        if (count)
            take(v, arrived, count, &times);
        if (give(v, &times) || count) {
            spins = 0;
        } else if (++spins < SPINS_PER_CHECK && lane->hot_ticks &&
                   !(feed->shares && feed->in_flight)) {
            cpu_pause();
        } else {
            spins = 0;
            if (!look(v, &times, &yielded))
                break;
        }
    }
    if (feed->in_flight) { /* whose worker is gone, or is no longer believed */
        times.executing += ticks() - feed->since;
        lane->account->busy_since_ns = 0;
        lane_account(lane, &times, ticks());
    }
    if (!v->link.broken)
        give_up(v);
    const uint64_t one = 1;
    ssize_t written = write(v->notice_fd, &one, sizeof one); /* its counter cannot overflow */
    (void)written;
}

void verbs_feed_wake(worker_lane *lane) {
    uint32_t *sleeps = &lane->ring.header->client_sleeps;
    verbs_lane_wake(lane);
    store_release(sleeps, 0);
    futex_wake(sleeps);
}
