"""Calls the functions of a library in this process, as a worker would: by ctypes, in place."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import NamedTuple

ALIGNMENT = 64
GUARD = b"\xa5" * 256  # after the output: whoever writes past it is found out


class Call(ctypes.Structure):
    """rfaas_call of functions/rfaas.h, field by field."""

    _fields_ = (
        ("args", ctypes.c_void_p),
        ("res", ctypes.c_void_p),
        ("size", ctypes.c_uint32),
        ("capacity", ctypes.c_uint32),
        ("result_size", ctypes.c_uint32),
        ("text_size", ctypes.c_uint32),
    )


class Outcome(NamedTuple):
    """What a function of the richer form left: its status, and its result or its text."""

    status: int
    result: bytes
    text: str


def call_plain(library: Path, name: str, data: bytes, capacity: int) -> bytes:
    """The result of a function of the plain form."""
    function = getattr(ctypes.CDLL(str(library)), name)
    function.restype = ctypes.c_uint32
    with_input, with_output = _aligned(data), _aligned(bytes(capacity) + GUARD)
    size = function(
        ctypes.c_void_p(with_input.address), ctypes.c_uint32(len(data)), with_output.pointer()
    )
    assert with_output.bytes(capacity, len(GUARD)) == GUARD, "wrote past the output"
    return with_output.bytes(0, size)


def call_richer(library: Path, name: str, data: bytes, capacity: int = 1 << 20) -> Outcome:
    """The outcome of a function of the richer form."""
    function = getattr(ctypes.CDLL(str(library)), name)
    function.restype = ctypes.c_int32
    with_input, with_output = _aligned(data), _aligned(bytes(capacity) + GUARD)
    call = Call(with_input.address, with_output.address, len(data), capacity, 0, 0)
    status = function(ctypes.byref(call))
    assert with_output.bytes(capacity, len(GUARD)) == GUARD, "wrote past the output"
    assert with_input.bytes(0, len(data)) == data, "wrote into the input"
    assert max(call.result_size, call.text_size) <= capacity
    if status:
        return Outcome(status, b"", with_output.bytes(0, call.text_size).decode())
    return Outcome(0, with_output.bytes(0, call.result_size), "")


class _Memory(NamedTuple):
    owner: ctypes.Array[ctypes.c_char]
    address: int

    def pointer(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.address)

    def bytes(self, offset: int, size: int) -> bytes:
        return ctypes.string_at(self.address + offset, size)


def _aligned(data: bytes) -> _Memory:
    owner = ctypes.create_string_buffer(len(data) + ALIGNMENT)
    address = -(-ctypes.addressof(owner) // ALIGNMENT) * ALIGNMENT
    ctypes.memmove(address, data, len(data))
    return _Memory(owner, address)
