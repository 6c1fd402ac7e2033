/* Counts by RDMA: FETCH_AND_ADD into the executor's memory, and nothing else of it.
 *
 *     worker, or its endpoint                executor
 *                                            a page per worker: a line per lane (ring_account)
 *     connect(account_hello)       ------->  a stranger? reject(verbs_refusal)
 *     established                  <-------  accept(account_place): address, key
 *     FETCH_AND_ADD of what each word has grown by, now and then
 *
 * Each word of a line is told by the difference to what was told before, modulo 2^64, so a line
 * there equals the line here as of the last time.  Each page is a region of its own in a
 * protection domain of its own, open to remote atomics and to nothing else: a key of one worker
 * opens no other's counts, and none of them can be read.
 */
#ifndef RFAAS_VERBS_ACCOUNT_H
#define RFAAS_VERBS_ACCOUNT_H

#include "verbs.h"

#define ACCOUNT_WORDS (sizeof(ring_account) / sizeof(uint64_t)) /* of a line */

/* Either side of such a connection. */
typedef struct {
    struct rdma_event_channel *events; /* NULL at the executor: its listener has it */
    struct rdma_cm_id *id;
    struct ibv_pd *pd;
    struct ibv_comp_channel *channel;
    struct ibv_cq *cq;
    struct ibv_mr *mr; /* the page; at the worker, where answers land */
    uint64_t *words;   /* of `mr` */
    uint64_t *told;    /* at the worker: what has been added so far */
    uint64_t remote;
    uint32_t rkey, lanes;
    int broken;
} account_link;

/* All return 0, or -1 with the trouble; the link is to be closed in either case. */
int account_open(account_link *link, struct ibv_context *device, uint32_t lanes, int is_page,
                 verbs_trouble *trouble);
int account_accept(account_link *link, struct rdma_cm_id *id, verbs_trouble *trouble);
int account_connect(account_link *link, const struct sockaddr *to, uint32_t lanes,
                    const uint8_t *secret, uint64_t timeout_ns, verbs_trouble *trouble);
void account_close(account_link *link);

/* Whether the device adds for others. */
int account_has_atomics(struct ibv_context *device);

/* Add what has grown since the last time, and wait until it is there: 0, or -1 when the
 * connection is broken, from then on. */
int account_tell(account_link *link, const ring_account *lines, uint64_t timeout_ns);

#endif
