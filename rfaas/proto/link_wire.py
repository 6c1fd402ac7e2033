"""What links over RDMA say below their frames: private data, immediates, bounds.  No I/O.

`native/rdma_stream.h` repeats it in C, and `tests/native/test_link_wire.py` compares the two.

Bytes of frames travel as SEND WITH IMM, each into one receive of the other side.
The immediate (big-endian, as verbs have it) says what came:

    bit 31          16 15                          0
       | DATA, CREDIT | receives posted again since  |

A CREDIT has no payload and DATA has some.  Both sides begin with as many
credits as the other side's hello has receives; DATA leaves the last one alone.
"""

from __future__ import annotations

STREAM_MAGIC = 0x31434652  # b"RFC1"
STREAM_VERSION = 1
STREAM_HELLO = "<IHHI"  # magic, version, receives, bytes of each: private data of connect, accept
STREAM_REFUSAL = "<IHH"  # magic, version, reason: private data of a rejection

STREAM_DATA = 1
STREAM_CREDIT = 2

# What ours offers, and so what a link locks in memory: 16 KiB.
STREAM_RECEIVES = 8
STREAM_SENDS = 8
STREAM_BUFFER_BYTES = 1024
STREAM_BYTES = (STREAM_RECEIVES + STREAM_SENDS) * STREAM_BUFFER_BYTES

# What the other side may offer.
STREAM_PEER_RECEIVES_MIN = 2
STREAM_PEER_RECEIVES_MAX = 4096
STREAM_PEER_BUFFER_BYTES_MIN = 64

# Why a connection is refused.
STREAM_REFUSED_STRANGER = 1
STREAM_REFUSED_VERSION = 2
STREAM_REFUSED_GEOMETRY = 3
STREAM_REFUSED_QUEUES = 4
