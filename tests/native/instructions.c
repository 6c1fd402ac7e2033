/* Both sides of calls over a NIC in one thread, over a NIC that is a few lines of C.
 *
 * For callgrind: what is not in a `nic_` function, in the called function or in libc is what
 * our code adds to a call.  The worker's loop runs; when it finds nothing to do, it is the
 * client's turn, which collects the result and puts the next call.
 *
 * With an endpoint, a ring and the loop of shm stand between NIC and function; "apart", the
 * worker is a thread of its own, and what is of interest is the time.
 *
 *     instructions CALLS BYTES [trusted | endpoint | apart]
 */
#include "serve.h"
#include "verbs_feed.h"
#include "verbs_lane.h"
#include "verbs_window.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#define SLOTS 16u
#define SLOT_BYTES 4096u
#define CELLS_BYTES PAGE_BYTES
#define QUEUE 64u
#define NOINLINE __attribute__((noinline))

static struct ibv_context nic;
static struct ibv_qp pairs[2]; /* 0: the client's, 1: the worker's */
static struct ibv_cq receives[2], sends[2];
static struct ibv_wc queue[4][QUEUE]; /* of receives[0], receives[1], sends[0], sends[1] */
static uint32_t head[4], tail[4];
static window client;
static verbs_lane worker;  /* or its endpoint */
static worker_lane behind; /* the worker of an endpoint */
static uint32_t served;    /* requests that it has been given a turn for */
static int is_apart;
static uint64_t *taken, since; /* ticks of each call */
static ring_account line;
static uint32_t calls, done, payload;
static uint8_t data[SLOT_BYTES];

static void client_turn(void);
static int worker_turn(void);

NOINLINE static void nic_complete(unsigned of, struct ibv_wc completion) {
    queue[of][head[of]++ % QUEUE] = completion;
}

/* Writes take effect at once; the immediate goes to the other side's receive queue. */
NOINLINE static int nic_post_send(struct ibv_qp *qp, struct ibv_send_wr *wr,
                                  struct ibv_send_wr **bad) {
    const unsigned from = qp == &pairs[1];
    const uint32_t size = wr->num_sge ? wr->sg_list->length : 0;
    (void)bad;
    memcpy((void *)(uintptr_t)wr->wr.rdma.remote_addr, (void *)(uintptr_t)wr->sg_list->addr, size);
    nic_complete(1 - from, (struct ibv_wc){.opcode = IBV_WC_RECV_RDMA_WITH_IMM,
                                           .byte_len = size, .imm_data = wr->imm_data});
    if (wr->send_flags & IBV_SEND_SIGNALED)
        nic_complete(2 + from, (struct ibv_wc){.wr_id = wr->wr_id});
    return 0;
}

NOINLINE static int nic_post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr,
                                  struct ibv_recv_wr **bad) {
    (void)qp, (void)wr, (void)bad;
    return 0;
}

NOINLINE static int nic_poll_cq(struct ibv_cq *cq, int most, struct ibv_wc *out) {
    const unsigned of = cq == &receives[0] ? 0 : cq == &receives[1] ? 1 : cq == &sends[0] ? 2 : 3;
    if (of == 1 && head[1] == tail[1] && !worker_turn())
        client_turn();
    int count = 0;
    while (count < most && tail[of] != head[of])
        out[count++] = queue[of][tail[of]++ % QUEUE];
    return count;
}

/* Serve what the endpoint has announced: 0 if there is nothing, or nobody to do it for. */
NOINLINE static int worker_turn(void) {
    if (!worker.feed || !worker.feed->in_flight)
        return 0;
    if (!is_apart && served != worker.feed->next_request) {
        behind.ring.header->first = served;
        lane_loop(&behind); /* ends at once: it is told to stop */
        served = worker.feed->next_request;
    }
    return 1;
}

NOINLINE static void client_turn(void) {
    if (client.calls[0].state == CALL_IN_FLIGHT)
        window_wait(&client, 0, UINT64_MAX, 0);
    const uint64_t now = ticks();
    if (done)
        taken[done - 1] = now - since;
    since = now;
    if (done++ == calls)
        worker.link.broken = 1; /* ends the loop */
    else
        window_put(&client, 0, 0, data, payload);
}

NOINLINE static uint32_t called_function(void *args, uint32_t size, void *res) {
    memcpy(res, args, size);
    return size;
}

static void make_ring(ring_map *ring) {
    ring->slots = SLOTS;
    ring->slot_bytes = SLOT_BYTES;
    ring->stride = SLOT_BYTES + PAGE_BYTES;
    ring->bytes = PAGE_BYTES + CELLS_BYTES + 2 * SLOTS * ring->stride;
    ring->mask = SLOTS - 1;
    ring->header = mmap(NULL, ring->bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    ring->requests = (ring_cell *)((uint8_t *)ring->header + PAGE_BYTES);
    ring->responses = ring->requests + SLOTS;
    ring->inputs = (uint8_t *)ring->header + PAGE_BYTES + CELLS_BYTES;
    ring->outputs = ring->inputs + SLOTS * ring->stride;
}

static void make_link(verbs_link *link, unsigned side, const ring_map *other, int to_inputs) {
    static struct ibv_recv_wr chain[SLOTS];
    *link = (verbs_link){
        .qp = &pairs[side], .receive_cq = &receives[side], .send_cq = &sends[side],
        .remote_base = (uintptr_t)(to_inputs ? other->inputs : other->outputs),
        .stride = other->stride, .inline_max = 512, .signal_mask = 15, .send_depth = QUEUE,
        .receive_batch = SLOTS / 2, .receives = chain, .slots = SLOTS, .slot_bytes = SLOT_BYTES,
        .write = {.opcode = IBV_WR_RDMA_WRITE_WITH_IMM},
    };
    link->write.sg_list = &link->sge;
}

static int compare(const void *one, const void *other) {
    const uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;
    return (a > b) - (a < b);
}

int main(int count, char **words) {
    static verbs_link link;
    const lane_function function = {(void *)called_function, 1};
    if (count < 3)
        return 2;
    const char *mode = count > 3 ? words[3] : "trusted";
    is_apart = !strcmp(mode, "apart");
    calls = (uint32_t)atoi(words[1]);
    payload = (uint32_t)atoi(words[2]);
    taken = calloc(calls, sizeof *taken);
    ticks_calibrate();
    ticks_calibrate();
    nic.ops.post_send = nic_post_send;
    nic.ops.post_recv = nic_post_recv;
    nic.ops.poll_cq = nic_poll_cq;
    for (unsigned side = 0; side < 2; side++)
        pairs[side].context = receives[side].context = sends[side].context = &nic;
    make_ring(&client.ring);
    make_ring(&worker.lane.ring);
    make_link(&link, 0, &worker.lane.ring, 1);
    make_link(&worker.link, 1, &client.ring, 0);
    client.calls = aligned_alloc(LINE_BYTES, SLOTS * sizeof *client.calls);
    memset(client.calls, 0, SLOTS * sizeof *client.calls);
    client.carrier = &verbs_carrier;
    client.carried_by = &link;
    worker.lane.account = &line;
    worker.lane.functions = &function;
    worker.lane.function_count = 1;
    worker.lane.hot_ticks = HOT_ALWAYS;
    worker.notice_fd = -1;
    if (strcmp(mode, "trusted")) {
        static ring_account scratch;
        behind = worker.lane;
        behind.account = &scratch;
        behind.loop = lane_loop;
        behind.cpu = -1;
        behind.stop = !is_apart;
        behind.hot_ticks = is_apart ? HOT_ALWAYS : 0;
        worker.feed = verbs_feed_new(&worker.lane.ring, 0);
        worker.lane.loop = verbs_feed_loop;
        if (is_apart && lane_start(&behind))
            return 3;
    } else {
        worker.lane.loop = verbs_lane_loop;
    }
    worker.lane.loop(&worker.lane);
    lane_stop(&behind);
    qsort(taken, calls, sizeof *taken, compare);
    printf("%llu calls, min %llu, median %llu ns\n", (unsigned long long)line.calls,
           (unsigned long long)ticks_to_ns(taken[0]),
           (unsigned long long)ticks_to_ns(taken[calls / 2]));
    return line.calls == calls ? 0 : 1;
}
