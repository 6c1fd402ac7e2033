/* What connections over RDMA say to each other: rfaas/proto/wire.py in C, without libibverbs. */
#ifndef RFAAS_VERBS_WIRE_H
#define RFAAS_VERBS_WIRE_H

#include <stdint.h>

#define VERBS_MAGIC 0x31564652u /* "RFV1" */
#define VERBS_VERSION 1u
#define SECRET_BYTES 16u
#define DETAIL_BYTES 4u      /* the end of the payload of an answer that is not OK */

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the wire is little-endian, and so must this machine be"
#endif

/* What travels in the private data of connect (at most 56 bytes) and accept (196). */
typedef struct __attribute__((packed)) {
    uint32_t magic;
    uint16_t version, lane;
    uint64_t address; /* of slot 0; the next is slot_bytes + PAGE_BYTES on */
    uint32_t rkey, slots, slot_bytes;
} verbs_window;

typedef struct __attribute__((packed)) {
    verbs_window outputs;
    uint8_t secret[SECRET_BYTES];
} verbs_hello;

typedef struct __attribute__((packed)) {
    uint32_t magic;
    uint16_t version, reason; /* REFUSED_* */
} verbs_refusal;

/* The same of a connection that adds to an executor's accounting page. */
#define ACCOUNT_MAGIC 0x31414652u /* "RFA1" */

typedef struct __attribute__((packed)) {
    uint32_t magic;
    uint16_t version, unused;
    uint8_t secret[SECRET_BYTES];
} account_hello;

typedef struct __attribute__((packed)) {
    uint32_t magic;
    uint16_t version, lanes;
    uint64_t address;
    uint32_t rkey;
} account_place;

enum { REFUSED_STRANGER = 1, REFUSED_VERSION, REFUSED_SECRET, REFUSED_LANE, REFUSED_GEOMETRY,
       REFUSED_TAKEN, REFUSED_QUEUES, REFUSED_THREAD };

#endif
