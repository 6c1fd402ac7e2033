"""The two declarations of links over RDMA, link_wire.py and rdma_stream.h, say the same."""

from __future__ import annotations

import struct

import pytest

from rfaas.proto import link_wire


def test_every_number_is_the_same() -> None:
    native = pytest.importorskip(
        "rfaas.native._rdma_stream",
        reason="no librdmacm, or no headers of it where this was built",
        exc_type=ImportError,
    )
    ours = {name: value for name, value in vars(link_wire).items() if isinstance(value, int)}
    assert ours == native.NUMBERS


def test_private_data_fits() -> None:
    """56 bytes in a connect, 148 in a rejection: rdma_connect(3), rdma_reject(3)."""
    assert struct.calcsize(link_wire.STREAM_HELLO) <= 56
    assert struct.calcsize(link_wire.STREAM_REFUSAL) <= 148
