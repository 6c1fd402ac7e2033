/* The ring in memory: rfaas/proto/wire.py in C, and how its words are read and written.
 *
 * Everything here is inlined into the two loops, lane.c (the worker's side) and
 * window.c (the client's).  No allocation, no lock, no system call but futex(2),
 * and that only where somebody sleeps.
 *
 * Who writes what: request cells and inputs, the client; response cells and
 * outputs, the worker; `worker_sleeps`, the worker (the client clears it to wake
 * it); `client_sleeps` likewise; `state`, the executor.  Neither side trusts what
 * the other wrote: every slot and size is checked before it is used.
 */
#ifndef RFAAS_RING_H
#define RFAAS_RING_H

#include <linux/futex.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define RING_MAGIC 0x31534652u
#define RING_VERSION 1u
#define PAGE_BYTES 4096u
#define LINE_BYTES 64u

#define FUNCTION_BITS 16u
#define SLOT_BITS 12u
#define FUNCTIONS_MAX (1u << FUNCTION_BITS)
#define SLOTS_MAX (1u << SLOT_BITS)
#define FLAG_INLINE 0x1u
#define SLOT_BYTES_MAX (1ull << 31)

enum { STATUS_OK, STATUS_FUNCTION_FAILED, STATUS_FUNCTION_UNKNOWN, STATUS_OUTPUT_TOO_LARGE,
       STATUS_REQUEST_INVALID, STATUS_WORKER_CRASHED, STATUS_BUSY };
enum { RING_STARTING, RING_SERVING, RING_ENDED };

#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
#define LINE_ALIGNED __attribute__((aligned(64)))

typedef struct {
    uint32_t magic, version, slots, cells;
    uint64_t slot_bytes;
    uint32_t first;
    uint32_t worker_sleeps LINE_ALIGNED;
    uint32_t client_sleeps LINE_ALIGNED;
    uint32_t state LINE_ALIGNED;
} ring_header;

#define DATA0_BYTES 48u
#define DATA1_BYTES 56u
#define INLINE_BYTES_MAX (DATA0_BYTES + DATA1_BYTES)

typedef struct {
    uint32_t seq0, imm, size, detail;
    uint8_t data0[DATA0_BYTES];
    uint32_t seq1, unused;
    uint8_t data1[DATA1_BYTES];
} LINE_ALIGNED ring_cell;

typedef struct {
    uint64_t calls, failed, executing_ns, polling_ns, sleeping_ns, wakeups, busy_since_ns, busy;
} LINE_ALIGNED ring_account;

/* A mapped ring and its geometry, private to the side that mapped it. */
typedef struct {
    ring_header *header;
    ring_cell *requests, *responses;
    uint8_t *inputs, *outputs; /* the first of each; the next is `stride` on */
    uint64_t slot_bytes, stride, bytes;
    uint32_t slots, mask;
} ring_map;

static inline uint8_t *ring_input(const ring_map *ring, uint32_t slot) {
    return ring->inputs + slot * ring->stride;
}

static inline uint8_t *ring_output(const ring_map *ring, uint32_t slot) {
    return ring->outputs + slot * ring->stride;
}

static inline uint32_t imm_make(uint32_t slot, uint32_t low, uint32_t flags) {
    return flags << (FUNCTION_BITS + SLOT_BITS) | slot << FUNCTION_BITS | low;
}
static inline uint32_t imm_slot(uint32_t imm) { return imm >> FUNCTION_BITS & (SLOTS_MAX - 1); }
static inline uint32_t imm_low(uint32_t imm) { return imm & (FUNCTIONS_MAX - 1); }
static inline uint32_t imm_flags(uint32_t imm) { return imm >> (FUNCTION_BITS + SLOT_BITS); }

static inline uint32_t load_acquire(const uint32_t *p) {
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
static inline uint32_t load_relaxed(const uint32_t *p) {
    return __atomic_load_n(p, __ATOMIC_RELAXED);
}
static inline void store_release(uint32_t *p, uint32_t value) {
    __atomic_store_n(p, value, __ATOMIC_RELEASE);
}
static inline void fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

static inline void cpu_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

/* The processor's constant-rate counter; `tick_scale` says what a tick lasts. */
static inline uint64_t ticks(void) {
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    uint64_t value;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(value));
    return value;
#else
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
#endif
}

static inline uint64_t monotonic_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Nanoseconds = ticks * tick_scale / 2^32; measured over at least 2 ms once a process. */
extern uint64_t tick_scale;
void ticks_calibrate(void);

static inline uint64_t ticks_to_ns(uint64_t count) {
    return (uint64_t)((unsigned __int128)count * tick_scale >> 32);
}
static inline uint64_t ns_to_ticks(uint64_t ns) {
    return (uint64_t)(((unsigned __int128)ns << 32) / tick_scale);
}

/* Sleep while *word is `value`, at most `timeout_ns` (UINT64_MAX: for ever). */
static inline void futex_wait(uint32_t *word, uint32_t value, uint64_t timeout_ns) {
    struct timespec t = {(time_t)(timeout_ns / 1000000000u), (long)(timeout_ns % 1000000000u)};
    syscall(SYS_futex, word, FUTEX_WAIT, value, timeout_ns == UINT64_MAX ? NULL : &t, NULL, 0);
}
static inline void futex_wake(uint32_t *word) {
    syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

/* Wake whoever sleeps on `sleeps`.  The flag costs a load while nobody does. */
static inline void wake_if_asleep(uint32_t *sleeps) {
    if (UNLIKELY(load_relaxed(sleeps))) {
        store_release(sleeps, 0);
        futex_wake(sleeps);
    }
}

/* Publish a cell whose payload, if any, is beside it in the slot. */
static inline void cell_put(ring_cell *cell, uint32_t seq, uint32_t imm, uint32_t size,
                            uint32_t detail) {
    cell->imm = imm;
    cell->size = size;
    cell->detail = detail;
    store_release(&cell->seq0, seq);
}

/* Publish a cell with `size` <= INLINE_BYTES_MAX bytes of payload in it. */
static inline void cell_put_inline(ring_cell *cell, uint32_t seq, uint32_t imm, const void *data,
                                   uint32_t size, uint32_t detail) {
    if (size > DATA0_BYTES) {
        memcpy(cell->data0, data, DATA0_BYTES);
        memcpy(cell->data1, (const uint8_t *)data + DATA0_BYTES, size - DATA0_BYTES);
        store_release(&cell->seq1, seq);
    } else {
        memcpy(cell->data0, data, size);
    }
    cell_put(cell, seq, imm, size, detail);
}

/* The same from memory of which INLINE_BYTES_MAX bytes may be read: no branch on bytes. */
static inline void cell_put_inline_padded(ring_cell *cell, uint32_t seq, uint32_t imm,
                                          const void *data, uint32_t size, uint32_t detail) {
    if (size > DATA0_BYTES) {
        memcpy(cell->data1, (const uint8_t *)data + DATA0_BYTES, DATA1_BYTES);
        store_release(&cell->seq1, seq);
    }
    memcpy(cell->data0, data, DATA0_BYTES);
    cell_put(cell, seq, imm, size, detail);
}

/* Copy the payload of a cell that is ready; `to` has room for INLINE_BYTES_MAX bytes. */
static inline void cell_get_inline(const ring_cell *cell, void *to, uint32_t size) {
    memcpy(to, cell->data0, DATA0_BYTES);
    if (size > DATA0_BYTES)
        memcpy((uint8_t *)to + DATA0_BYTES, cell->data1, DATA1_BYTES);
}

/* Whether the cell announces number `seq`, and its second line is there if it is used: what
 * writes cells need not write their lines in order.  Both lines are read in either case, so
 * that their cache misses overlap. */
static inline int cell_ready(const ring_cell *cell, uint32_t seq) {
    const uint32_t seq1 = load_acquire(&cell->seq1);
    if (load_acquire(&cell->seq0) != seq)
        return 0;
    return LIKELY(cell->size <= DATA0_BYTES || !(imm_flags(cell->imm) & FLAG_INLINE) ||
                  seq1 == seq || load_acquire(&cell->seq1) == seq);
}

/* Map the ring at `offset` of `fd`.  Returns 0, or an errno with *what set to the step that
 * failed. */
int ring_open(ring_map *ring, int fd, uint64_t offset, const char **what);

/* Make the guard pages inaccessible: 0 or an errno.  After memory was registered with a NIC,
 * which takes no page that cannot be written. */
int ring_guard(const ring_map *ring);
void ring_close(ring_map *ring);

#endif
