# cython: language_level=3
"""The wire format as native code has it, for the test that compares it with `proto/wire.py`."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

import os

from rfaas import errors

cdef extern from "wire.h" nogil:
    ctypedef struct wire_number:
        const char *name
        uint64_t value

    ctypedef struct ring_cell:
        pass

    ctypedef struct ring_header:
        pass

    ctypedef struct ring_map:
        ring_header *header
        ring_cell *requests
        ring_cell *responses
        uint64_t bytes
        uint32_t slots

    const wire_number *wire_numbers
    int ring_open(ring_map *ring, int fd, uint64_t offset, const char **what)
    void ring_close(ring_map *ring)
    uint8_t *ring_input(const ring_map *ring, uint32_t slot)
    uint8_t *ring_output(const ring_map *ring, uint32_t slot)
    uint32_t imm_make(uint32_t slot, uint32_t low, uint32_t flags)
    uint32_t imm_slot(uint32_t imm)
    uint32_t imm_low(uint32_t imm)
    uint32_t imm_flags(uint32_t imm)


def numbers():
    """Each number by its name in `proto/wire.py`."""
    cdef const wire_number *number = wire_numbers
    found = {}
    while number.name is not NULL:
        found[number.name.decode()] = number.value
        number += 1
    return found


def imm(slot, low, flags=0):
    """As `wire.imm`."""
    return imm_make(slot, low, flags)


def imm_fields(value):
    """As `wire.imm_fields`."""
    return imm_slot(value), imm_low(value), imm_flags(value)


def geometry(int fd, uint64_t offset=0):
    """Where the parts of the ring at `offset` of `fd` lie: offsets in it, and its size.

    Raises SystemCallError, as a lane does, where there is no ring.
    """
    cdef ring_map ring
    cdef const char *what
    cdef int error = ring_open(&ring, fd, offset, &what)
    if error:
        raise errors.SystemCallError(
            f"cannot open a ring: could not {what.decode()}: {os.strerror(error)}"
        )
    # SAFETY: addresses within the mapping are compared, none is read.
    cdef uint8_t *base = <uint8_t *>ring.header
    try:
        return {
            "requests": <uint8_t *>ring.requests - base,
            "responses": <uint8_t *>ring.responses - base,
            "inputs": [ring_input(&ring, slot) - base for slot in range(ring.slots)],
            "outputs": [ring_output(&ring, slot) - base for slot in range(ring.slots)],
            "bytes": ring.bytes,
        }
    finally:
        ring_close(&ring)
