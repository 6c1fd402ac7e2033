"""The two declarations of the data plane's format, wire.py and ring.h, say the same."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfaas.native import _wire
from rfaas.proto import wire
from rfaas.transport import ring

# What native code has no use for: what a ring is made with is decided above it.
PYTHON_ALONE = {"SLOTS_DEFAULT"}


def declared() -> dict[str, int]:
    """Every number of wire.py by its name."""
    found = {name: value for name, value in vars(wire).items() if isinstance(value, int)}
    for kind in (wire.Status, wire.RingState):
        found |= {f"{kind.__name__}.{member.name}": member.value for member in kind}
    return found


def test_every_number_is_the_same() -> None:
    ours = declared()
    assert set(ours) >= PYTHON_ALONE
    shared = {name: ours[name] for name in set(ours) - PYTHON_ALONE}
    assert shared == _wire.numbers()


@given(
    slot=st.integers(0, wire.SLOTS_MAX - 1),
    low=st.integers(0, wire.FUNCTIONS_MAX - 1),
    flags=st.integers(0, 15),
)
def test_immediates_are_the_same(slot: int, low: int, flags: int) -> None:
    value = wire.imm(slot, low, flags)
    assert value == _wire.imm(slot, low, flags) < 2**32
    assert wire.imm_fields(value) == _wire.imm_fields(value) == (slot, low, flags)


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 16, 17, 64, wire.SLOTS_MAX])
@pytest.mark.parametrize("slot_bytes", [wire.PAGE_BYTES, 3 * wire.PAGE_BYTES])
def test_geometry_is_the_same(slots: int, slot_bytes: int) -> None:
    stride = wire.slot_stride(slot_bytes)
    inputs = [wire.slots_offset(slots) + slot * stride for slot in range(slots)]
    cells_bytes = wire.cells_for(slots) * wire.CELL_BYTES
    fd = ring.create(2, slots, slot_bytes)
    try:
        whole = wire.ring_bytes(slots, slot_bytes)
        for offset in (0, whole):
            assert _wire.geometry(fd, offset) == {
                "requests": wire.PAGE_BYTES,
                "responses": wire.PAGE_BYTES + cells_bytes,
                "inputs": inputs,
                "outputs": [at + slots * stride for at in inputs],
                "bytes": whole,
            }
        assert os.fstat(fd).st_size == 2 * whole
    finally:
        os.close(fd)


def test_payloads_are_aligned_and_pages_whole() -> None:
    for slots in (1, 16, 17):
        for payload in (0, 1, 4095, 4096, 4097, wire.SLOT_BYTES_MAX):
            slot_bytes = wire.slot_bytes_for(payload)
            assert slot_bytes >= max(payload, 1)
            assert slot_bytes % wire.PAGE_BYTES == 0
            assert slot_bytes - payload < wire.PAGE_BYTES or payload == 0
        assert wire.slots_offset(slots) % wire.PAGE_BYTES == 0


def test_cells_are_a_power_of_two() -> None:
    for slots in range(1, 200):
        cells = wire.cells_for(slots)
        assert cells & (cells - 1) == 0
        assert slots <= cells < 2 * slots
