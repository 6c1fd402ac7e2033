/* Mapping a ring, and what a tick lasts: the parts of ring.h that are not on the hot path. */
#include "ring.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>

_Static_assert(sizeof(ring_cell) == 2 * LINE_BYTES, "a cell is two lines");
_Static_assert(__builtin_offsetof(ring_cell, seq1) == LINE_BYTES, "the second flag opens a line");
_Static_assert(__builtin_offsetof(ring_header, state) == 192, "as in wire.py");
_Static_assert(sizeof(ring_account) == LINE_BYTES, "one line a lane");

uint64_t tick_scale;
static uint64_t first_ticks, first_ns;

/* Two readings of both clocks, at least 2 ms apart: an error of 100 ns in either is 5e-5.
 * The first call takes the first reading and the second waits for what is missing. */
void ticks_calibrate(void) {
    if (tick_scale)
        return;
    if (!first_ns) {
        first_ticks = ticks();
        first_ns = monotonic_ns();
        return;
    }
    while (monotonic_ns() - first_ns < 2000000)
        cpu_pause();
    uint64_t count = ticks() - first_ticks, ns = monotonic_ns() - first_ns;
    tick_scale = (uint64_t)(((unsigned __int128)ns << 32) / count);
}

static uint64_t round_up(uint64_t bytes, uint64_t unit) { return (bytes + unit - 1) / unit * unit; }

int ring_open(ring_map *ring, int fd, uint64_t offset, const char **what) {
    struct stat status;
    ring_header header;
    *what = "read its header";
    if (fstat(fd, &status))
        return errno;
    ssize_t got = pread(fd, &header, sizeof header, (off_t)offset);
    if (got < 0)
        return errno;
    *what = "use its geometry";
    if (got != (ssize_t)sizeof header || header.magic != RING_MAGIC ||
        header.version != RING_VERSION || !header.slots || header.slots > SLOTS_MAX ||
        header.cells < header.slots || header.cells & (header.cells - 1) ||
        header.cells > SLOTS_MAX || !header.slot_bytes || header.slot_bytes % PAGE_BYTES ||
        header.slot_bytes > SLOT_BYTES_MAX)
        return EBADMSG;
    uint64_t base = round_up(PAGE_BYTES + 2ull * header.cells * sizeof(ring_cell), PAGE_BYTES);
    uint64_t stride = header.slot_bytes + PAGE_BYTES;
    uint64_t bytes = base + 2 * header.slots * stride;
    if ((uint64_t)status.st_size < bytes || offset > (uint64_t)status.st_size - bytes ||
        offset % PAGE_BYTES)
        return EBADMSG;
    *what = "map it";
    uint8_t *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)offset);
    if (at == MAP_FAILED)
        return errno;
    ring->header = (ring_header *)at;
    ring->requests = (ring_cell *)(at + PAGE_BYTES);
    ring->responses = ring->requests + header.cells;
    ring->inputs = at + base;
    ring->outputs = ring->inputs + header.slots * stride;
    ring->slot_bytes = header.slot_bytes;
    ring->stride = stride;
    ring->bytes = bytes;
    ring->slots = header.slots;
    ring->mask = header.cells - 1;
    return 0;
}

int ring_guard(const ring_map *ring) {
    for (uint32_t slot = 0; slot < ring->slots; slot++) {
        if (mprotect(ring_input(ring, slot) + ring->slot_bytes, PAGE_BYTES, PROT_NONE) ||
            mprotect(ring_output(ring, slot) + ring->slot_bytes, PAGE_BYTES, PROT_NONE))
            return errno;
    }
    return 0;
}

void ring_close(ring_map *ring) {
    if (ring->header)
        munmap(ring->header, ring->bytes);
    ring->header = NULL;
}
