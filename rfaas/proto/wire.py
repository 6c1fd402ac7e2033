"""The data plane's format: immediates, ring layout, statuses.  No I/O.

Declared here and nowhere else.  `native/ring.h` repeats it in C, and
`tests/native/test_wire.py` compares the two number by number.

An invocation is announced by a 32-bit immediate, the same over every
transport (over RDMA it is the immediate of a WRITE WITH IMM):

    bit 31      28 27          16 15                        0
       | flags    | slot         | function index, or status |

All integers are little-endian.  A *ring* is one lane's memory, a sealed memfd:

    0                       header page (offsets below)
    PAGE_BYTES              `cells` request cells, then `cells` response cells
    then, page aligned      `slots` times: input | guard page
                            `slots` times: output | guard page

A cell is two cache lines, each with a sequence number of its own, so that the
reader can wait for both at once.  Cell `i % cells` announces the i-th request
(or response) of the lane; its sequence number is `i + 1` modulo 2**32.  A
payload of up to INLINE_BYTES_MAX bytes travels in the cell, a larger one in
the slot.  There are at least as many cells as slots, and each announced call
owns a slot, so a writer never overtakes its reader.
"""

from __future__ import annotations

from enum import IntEnum

RING_MAGIC = 0x31534652  # b"RFS1"
RING_VERSION = 1
PAGE_BYTES = 4096
LINE_BYTES = 64

# Immediate
FUNCTION_BITS = 16
SLOT_BITS = 12
FLAG_INLINE = 0x1  # the payload is in the cell
FUNCTIONS_MAX = 1 << FUNCTION_BITS
SLOTS_MAX = 1 << SLOT_BITS

# Header page: offset in bytes of each field; u32 unless said otherwise.
HEADER_MAGIC = 0
HEADER_VERSION = 4
HEADER_SLOTS = 8
HEADER_CELLS = 12
HEADER_SLOT_BYTES = 16  # u64: capacity of the input, and of the output, of a slot
HEADER_FIRST = 24  # sequence number before the first one, 0 but in tests
HEADER_WORKER_SLEEPS = 64  # futex: 1 while the worker sleeps; on a line of its own
HEADER_CLIENT_SLEEPS = 128  # futex: 1 while the client sleeps; on a line of its own
HEADER_STATE = 192  # RingState, written by the executor alone; on a line of its own

# Offsets in a cell
CELL_BYTES = 2 * LINE_BYTES
CELL_SEQ0 = 0
CELL_IMM = 4
CELL_SIZE = 8  # payload bytes
CELL_DETAIL = 12  # response: the function's own status; request: 0
CELL_DATA0 = 16
CELL_DATA0_BYTES = LINE_BYTES - CELL_DATA0
CELL_SEQ1 = LINE_BYTES
CELL_DATA1 = LINE_BYTES + 8
CELL_DATA1_BYTES = CELL_BYTES - CELL_DATA1
INLINE_BYTES_MAX = CELL_DATA0_BYTES + CELL_DATA1_BYTES  # 104

# Over RDMA: a connection's private data, little-endian and without gaps.  `address` and `rkey`
# are those of slot 0 of what the other side writes to: outputs at the client, inputs at the
# worker; slot i lies i * slot_stride(slot_bytes) on.  native/verbs.h has the same.
VERBS_MAGIC = 0x31564652  # b"RFV1"
VERBS_VERSION = 1
VERBS_WINDOW = "<IHHQIII"  # magic, version, lane, address, rkey, slots, slot_bytes
SECRET_BYTES = 16  # follow the window in the client's hello
VERBS_REFUSAL = "<IHH"  # magic, version, reason: private data of a rejection
DETAIL_BYTES = 4  # u32 at the end of the payload of an answer that is not OK; not in its text

# Over RDMA, a worker or its endpoint adds to the executor's accounting page; the private data of
# that connection.  A refusal is as above.
ACCOUNT_MAGIC = 0x31414652  # b"RFA1"
ACCOUNT_HELLO = "<IHH"  # magic, version, 0; then the secret
ACCOUNT_PLACE = "<IHHQI"  # magic, version, lanes, address, rkey of the page

SLOT_BYTES_MAX = 1 << 31  # sizes are 32 bits wide on the published ABI
SLOTS_DEFAULT = 16

# Accounting page: one line of u64 counters per lane, written by that lane alone.
ACCOUNT_CALLS = 0
ACCOUNT_FAILED = 8
ACCOUNT_EXECUTING_NS = 16
ACCOUNT_POLLING_NS = 24
ACCOUNT_SLEEPING_NS = 32
ACCOUNT_WAKEUPS = 40
ACCOUNT_BUSY_SINCE_NS = 48  # CLOCK_MONOTONIC when the running call began, 0 between calls
ACCOUNT_BUSY = 56  # requests that were turned away; they are no calls
ACCOUNT_LANE_BYTES = LINE_BYTES


class Status(IntEnum):
    """How an invocation ended, as it stands in the immediate of its result."""

    OK = 0
    FUNCTION_FAILED = 1  # detail: the function's status; payload: its text
    FUNCTION_UNKNOWN = 2  # detail: the index that was asked for
    OUTPUT_TOO_LARGE = 3  # detail: the size that the function reported
    REQUEST_INVALID = 4  # slot or size out of bounds; detail: that number
    WORKER_CRASHED = 5  # over RDMA, from an endpoint: its worker died before it answered
    BUSY = 6  # another lease has the processor: nothing was run, and may be asked for again


class RingState(IntEnum):
    """Who still serves a ring."""

    STARTING = 0
    SERVING = 1
    ENDED = 2  # the worker is gone; the control link says why


def imm(slot: int, low: int, flags: int = 0) -> int:
    """The immediate for `slot` and a function index (or status) `low`."""
    return flags << (FUNCTION_BITS + SLOT_BITS) | slot << FUNCTION_BITS | low


def imm_fields(value: int) -> tuple[int, int, int]:
    """`(slot, function index or status, flags)` of an immediate."""
    return (
        value >> FUNCTION_BITS & (SLOTS_MAX - 1),
        value & (FUNCTIONS_MAX - 1),
        value >> (FUNCTION_BITS + SLOT_BITS),
    )


def slot_bytes_for(payload_bytes: int) -> int:
    """The smallest slot capacity that holds `payload_bytes`: whole pages, at least one.

    Whole pages, so that the first byte past an output is in its guard page.
    """
    return max(PAGE_BYTES, -(-payload_bytes // PAGE_BYTES) * PAGE_BYTES)


def cells_for(slots: int) -> int:
    """Cells of a ring with `slots` slots: the next power of two."""
    return 1 << (slots - 1).bit_length()


def slots_offset(slots: int) -> int:
    """Offset of the first slot in a ring."""
    end = PAGE_BYTES + 2 * cells_for(slots) * CELL_BYTES
    return -(-end // PAGE_BYTES) * PAGE_BYTES


def slot_stride(slot_bytes: int) -> int:
    """Distance from one input to the next, and from one output to the next."""
    return slot_bytes + PAGE_BYTES


def ring_bytes(slots: int, slot_bytes: int) -> int:
    """Size of a ring."""
    return slots_offset(slots) + 2 * slots * slot_stride(slot_bytes)
