/* The client's side of a lane over a NIC: what carries a window's calls.  See verbs.h. */
#include "verbs_window.h"

#include <errno.h>
#include <stdlib.h>

static inline verbs_link *link_of(const window *w) { return w->carried_by; }

/* Nothing will come any more: whoever waits finds the ring ended. */
static void end(window *w) { store_release(&w->ring.header->state, RING_ENDED); }

static void put(window *w, uint32_t slot, uint32_t function, const void *data, uint32_t size) {
    verbs_link *link = link_of(w);
    w->calls[slot].state = CALL_IN_FLIGHT;
    __atomic_store_n(&w->next_request, w->next_request + 1, __ATOMIC_RELAXED);
    if (!data || size > link->inline_max) {
        if (data)
            memcpy(ring_input(&w->ring, slot), data, size);
        data = ring_input(&w->ring, slot);
    }
    if (UNLIKELY(load_relaxed(&link->broken)) ||
        UNLIKELY(verbs_write(link, slot, imm_make(slot, function, 0), data, size)))
        end(w);
}

/* An endpoint says so of its worker.  The executor knows more: its notice becomes the error. */
static inline int says_crashed(const struct ibv_wc *completion) {
    return UNLIKELY(imm_low(be32toh(completion->imm_data)) == STATUS_WORKER_CRASHED);
}

/* Take one result: 0, or -1 if it makes no sense. */
static inline int collect(window *w, const struct ibv_wc *completion) {
    const uint32_t imm = be32toh(completion->imm_data), slot = imm_slot(imm);
    uint32_t size = completion->byte_len, status = imm_low(imm), detail = 0;
    if (UNLIKELY(completion->opcode != IBV_WC_RECV_RDMA_WITH_IMM || slot >= w->ring.slots ||
                 w->calls[slot].state != CALL_IN_FLIGHT || size > w->ring.slot_bytes))
        return -1;
    window_call *call = &w->calls[slot];
    const uint8_t *output = ring_output(&w->ring, slot);
    if (UNLIKELY(status != STATUS_OK)) {
        if (size < DETAIL_BYTES)
            return -1;
        size -= DETAIL_BYTES;
        memcpy(&detail, output + size, DETAIL_BYTES);
    }
    call->size = size;
    call->status = status;
    call->detail = detail;
    call->is_inline = size <= INLINE_BYTES_MAX;
    if (call->is_inline)
        memcpy(call->data, output, INLINE_BYTES_MAX); /* a slot has at least a page */
    __atomic_store_n(&w->next_response, w->next_response + 1, __ATOMIC_RELAXED);
    store_release(&call->state, CALL_DONE);
    return 0;
}

static int poll_results(window *w) {
    verbs_link *link = link_of(w);
    struct ibv_wc arrived[POLL_BATCH];
    int count = ibv_poll_cq(link->receive_cq, POLL_BATCH, arrived);
    for (int i = 0; i < count; i++) {
        if (UNLIKELY(arrived[i].status != IBV_WC_SUCCESS)) {
            verbs_flushed(link, &arrived[i]);
            count = i;
            break;
        }
        if (says_crashed(&arrived[i])) {
            verbs_break(link, FAULT_WORKER, 0, 0);
            count = i;
            break;
        }
        if (UNLIKELY(collect(w, &arrived[i])))
            return -1;
    }
    if (count > 0)
        verbs_replenish(link, (uint32_t)count);
    else if (UNLIKELY(count < 0))
        verbs_break(link, FAULT_POST, EIO, 0);
    if (UNLIKELY(load_relaxed(&link->broken)))
        end(w);
    return count < 0 ? 0 : count;
}

static int doze(window *w, uint64_t sleep_ns) {
    verbs_link *link = link_of(w);
    store_release(&w->ring.header->client_sleeps, 1);
    if (ibv_req_notify_cq(link->receive_cq, 0))
        verbs_break(link, FAULT_POST, EIO, 0);
    int collected = poll_results(w); /* arming and then looking once more loses none */
    if (!collected && !load_relaxed(&link->broken)) {
        if (verbs_doze(link, link->events->fd, sleep_ns))
            verbs_events(link); /* and `poll_results` sees what it has found */
        collected = poll_results(w); /* what came before the end */
        if (!collected)
            verbs_probe(link);
    }
    store_release(&w->ring.header->client_sleeps, 0);
    return collected;
}

/* A worker that dies says so by an event alone: our own queues are well. */
static void look(window *w) {
    verbs_events(link_of(w));
    verbs_probe(link_of(w));
    if (load_relaxed(&link_of(w)->broken))
        end(w);
}

static void hang_up(window *w) {
    verbs_close(link_of(w));
    free(w->carried_by);
    w->carried_by = NULL;
}

const window_carrier verbs_carrier = {put, poll_results, doze, look, hang_up, VERBS_YIELD_NS};
