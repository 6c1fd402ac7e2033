/* See wire.h.  The compiler fills in the values: nothing is written down a third time. */
#include "wire.h"

#include "verbs_wire.h"

#include <stddef.h>

#define SAME(name) {#name, name}
#define HEADER(name, field) {"HEADER_" #name, offsetof(ring_header, field)}
#define CELL(name, field) {"CELL_" #name, offsetof(ring_cell, field)}
#define ACCOUNT(name, field) {"ACCOUNT_" #name, offsetof(ring_account, field)}

const wire_number wire_numbers[] = {
    SAME(RING_MAGIC),
    SAME(RING_VERSION),
    SAME(PAGE_BYTES),
    SAME(LINE_BYTES),
    SAME(FUNCTION_BITS),
    SAME(SLOT_BITS),
    SAME(FLAG_INLINE),
    SAME(FUNCTIONS_MAX),
    SAME(SLOTS_MAX),
    SAME(SLOT_BYTES_MAX),
    SAME(INLINE_BYTES_MAX),
    SAME(VERBS_MAGIC),
    SAME(VERBS_VERSION),
    SAME(SECRET_BYTES),
    SAME(DETAIL_BYTES),
    SAME(ACCOUNT_MAGIC),
    HEADER(MAGIC, magic),
    HEADER(VERSION, version),
    HEADER(SLOTS, slots),
    HEADER(CELLS, cells),
    HEADER(SLOT_BYTES, slot_bytes),
    HEADER(FIRST, first),
    HEADER(WORKER_SLEEPS, worker_sleeps),
    HEADER(CLIENT_SLEEPS, client_sleeps),
    HEADER(STATE, state),
    {"CELL_BYTES", sizeof(ring_cell)},
    CELL(SEQ0, seq0),
    CELL(IMM, imm),
    CELL(SIZE, size),
    CELL(DETAIL, detail),
    CELL(DATA0, data0),
    {"CELL_DATA0_BYTES", sizeof((ring_cell *)0)->data0},
    CELL(SEQ1, seq1),
    CELL(DATA1, data1),
    {"CELL_DATA1_BYTES", sizeof((ring_cell *)0)->data1},
    ACCOUNT(CALLS, calls),
    ACCOUNT(FAILED, failed),
    ACCOUNT(EXECUTING_NS, executing_ns),
    ACCOUNT(POLLING_NS, polling_ns),
    ACCOUNT(SLEEPING_NS, sleeping_ns),
    ACCOUNT(WAKEUPS, wakeups),
    ACCOUNT(BUSY_SINCE_NS, busy_since_ns),
    ACCOUNT(BUSY, busy),
    {"ACCOUNT_LANE_BYTES", sizeof(ring_account)},
    {"Status.OK", STATUS_OK},
    {"Status.FUNCTION_FAILED", STATUS_FUNCTION_FAILED},
    {"Status.FUNCTION_UNKNOWN", STATUS_FUNCTION_UNKNOWN},
    {"Status.OUTPUT_TOO_LARGE", STATUS_OUTPUT_TOO_LARGE},
    {"Status.REQUEST_INVALID", STATUS_REQUEST_INVALID},
    {"Status.WORKER_CRASHED", STATUS_WORKER_CRASHED},
    {"Status.BUSY", STATUS_BUSY},
    {"RingState.STARTING", RING_STARTING},
    {"RingState.SERVING", RING_SERVING},
    {"RingState.ENDED", RING_ENDED},
    {NULL, 0},
};
