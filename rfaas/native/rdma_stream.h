/* A stream of bytes each way over an RC connection: what carries a control link over RDMA.
 *
 *     sender                                          receiver
 *     send buffers      --- SEND WITH IMM, bytes --->  receive buffers, posted in advance
 *     credits: receives that the other side has posted and told of
 *
 * A message takes one receive, so who has no credit sends nothing, and receives cannot be
 * overrun.  Its immediate says which kind it is and how many receives its sender has posted
 * again since it last said so: credits ride on data, and where there is none to send, an
 * explicit message without payload brings them once half of the receives are owed.
 *
 * No deadlock: data leaves the last credit alone, which is for such a message.  Say A may send
 * no data: it has one credit or none.  If B has read all that came, the others are owed by B,
 * more than half.  Then B tells, unless it has no credit itself; it spent its last one on
 * telling, and A, whom that gave at least STREAM_RECEIVES / 2 credits, has used them for data,
 * which returned B's credit.
 *
 * A receive that was taken is posted again when the owner has read it: who reads slowly is sent
 * nothing, and all memory there ever is are the STREAM_BYTES of a stream.
 *
 * Nothing here waits; whoever owns a stream waits for `epoll_fd` to be readable, and calls
 * `rdma_stream_step`.  One thread at a time.
 */
#ifndef RFAAS_RDMA_STREAM_H
#define RFAAS_RDMA_STREAM_H

#include <rdma/rdma_cma.h>
#include <stdint.h>

#define STREAM_MAGIC 0x31434652u /* "RFC1" */
#define STREAM_VERSION 1u
#define STREAM_RECEIVES 8u
#define STREAM_SENDS 8u
#define STREAM_BUFFER_BYTES 1024u
#define STREAM_BYTES ((STREAM_RECEIVES + STREAM_SENDS) * STREAM_BUFFER_BYTES) /* locked in memory */
#define STREAM_PEER_RECEIVES_MIN 2u
#define STREAM_PEER_RECEIVES_MAX 4096u
#define STREAM_PEER_BUFFER_BYTES_MIN 64u

/* Bits 31..16 of an immediate; 15..0 are credits. */
enum { STREAM_DATA = 1, STREAM_CREDIT = 2 };

/* What travels in the private data of connect and accept. */
typedef struct __attribute__((packed)) {
    uint32_t magic;
    uint16_t version, receives;
    uint32_t buffer_bytes;
} stream_hello;

typedef struct __attribute__((packed)) {
    uint32_t magic;
    uint16_t version, reason; /* STREAM_REFUSED_* */
} stream_refusal;

enum { STREAM_REFUSED_STRANGER = 1, STREAM_REFUSED_VERSION, STREAM_REFUSED_GEOMETRY,
       STREAM_REFUSED_QUEUES };

enum { STREAM_NEW, STREAM_OPENING, STREAM_OPEN, STREAM_ENDED, STREAM_BROKEN };

/* What broke a stream; `where` is STREAM_AT_*. */
enum { STREAM_AT_STEP = 1, STREAM_AT_EVENT, STREAM_AT_SEND, STREAM_AT_RECEIVE, STREAM_AT_WIRE };

typedef struct {
    uint32_t where;
    const char *step;       /* of a STEP or an EVENT: what could not be done */
    int status;             /* errno, rdma_cm_event_type, ibv_wc_status, or what was received */
    int detail;             /* an event's status, a completion's vendor_err */
    uint32_t reason;        /* STREAM_REFUSED_*, or 0 */
    uint32_t port_down;     /* our device's port, if it was not active then; 0: it was */
} stream_fault;

typedef struct {
    int epoll_fd;           /* readable when there is something to do */
    uint32_t state;         /* STREAM_* */
    uint32_t credits;       /* receives of the other side that we may use */
    uint32_t owed;          /* receives posted again that it has not been told of */
    uint32_t arrived, read; /* receives with bytes: taken from the queue, read by the owner */
    uint32_t offset;        /* into the first that is not read */
    uint32_t posted, done;  /* sends, modulo 2^32 */
    uint32_t wants_room;    /* somebody waits to send: a completed send is an event */
    uint32_t reads;         /* RDMA READs that are not done: 0 or 1 */
    uint32_t probes;        /* probes that are not done: 0 or 1 */
    uint32_t peer_receives, peer_buffer_bytes;
    uint32_t timeout_ms;    /* of each step of connecting */
    uint32_t waited_ms;     /* for the address so far */
    uint32_t patience_ms;   /* of the next try */
    struct sockaddr_storage to;
    stream_hello hello;     /* what we say of ourselves */
    uint16_t buffer[STREAM_RECEIVES]; /* ring: receives with bytes, in their order */
    uint16_t size[STREAM_RECEIVES];
    stream_fault fault;
    struct rdma_event_channel *events;
    struct rdma_cm_id *id;
    struct ibv_pd *pd;
    struct ibv_comp_channel *channel;
    struct ibv_cq *send_cq, *receive_cq;
    struct ibv_mr *mr;
    uint8_t *memory;        /* receive buffers, then send buffers */
} rdma_stream;

/* All return 0, or -1 with the fault set and the state STREAM_BROKEN, unless said otherwise. */

/* Say of ourselves what is true; before the other two. */
void rdma_stream_prepare(rdma_stream *stream);
/* Begin to connect; OPENING until `rdma_stream_step` makes it OPEN. */
int rdma_stream_connect(rdma_stream *stream, const struct sockaddr *from,
                        const struct sockaddr_storage *to, uint32_t timeout_ms);
/* Take over `id`, of a connection request with that hello, and accept it: OPENING.  The id is
 * rejected and gone where that fails. */
int rdma_stream_accept(rdma_stream *stream, struct rdma_cm_id *id, const stream_hello *hello);
/* 0, or why what came with a connection request is none of a stream: STREAM_REFUSED_*. */
uint32_t rdma_stream_refusal(const stream_hello *hello);
void rdma_stream_reject(struct rdma_cm_id *id, uint32_t reason);
int rdma_stream_listen(struct rdma_event_channel *events, const struct sockaddr *at, int backlog,
                       struct rdma_cm_id **id, stream_fault *fault);

/* Take what has happened, never waiting. */
int rdma_stream_step(rdma_stream *stream);
/* Take bytes to send: how many there was room for; 0: wait for room.  -1: the stream is over. */
int64_t rdma_stream_send(rdma_stream *stream, const uint8_t *data, uint64_t size);
/* How many bytes `rdma_stream_read` would give. */
uint64_t rdma_stream_readable(const rdma_stream *stream);
/* Copy that many bytes out; their receives are posted again. */
int rdma_stream_read(rdma_stream *stream, uint8_t *out);
/* Whether `rdma_stream_send` would take something. */
int rdma_stream_has_room(const rdma_stream *stream);
/* Whether something that was sent is not known to have arrived; its completion is an event. */
int rdma_stream_unsettled(rdma_stream *stream);
/* Find out, sooner or later, whether the other side is there: an empty RDMA WRITE. */
int rdma_stream_probe(rdma_stream *stream);
/* RDMA READ of `size` bytes of the other side into `to`; done when `reads` is 0 again. */
int rdma_stream_fetch(rdma_stream *stream, struct ibv_mr *to, uint64_t address, uint32_t key,
                      uint32_t size);
/* Register memory beside the stream's own: lent to the other side's READs, or as their target.
 * NULL with errno where that is refused. */
struct ibv_mr *rdma_stream_register(rdma_stream *stream, void *at, uint64_t size, int is_lent);
/* Disconnect and give all back; what was registered beside it must be gone. */
void rdma_stream_close(rdma_stream *stream);

/* Between rdma_stream.c and rdma_connect.c. */
int rdma_stream_queues(rdma_stream *stream); /* for stream->id */
int rdma_stream_completions(rdma_stream *stream);
int rdma_stream_events(rdma_stream *stream);
int rdma_stream_failed(rdma_stream *stream, uint32_t where, const char *step, int status,
                       int detail);

#endif
