"""Reads the PNG files that the demo writes, by the book and not by the demo's code."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from rfaas.bench.picture import Picture

RGB_8_BITS = (8, 2, 0, 0, 0)


def decoded(data: bytes) -> Picture:
    """The picture in a PNG file of 8-bit RGB without filters (RFC 2083)."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks = list(_chunks(data[8:]))
    kinds = [kind for kind, _ in chunks]
    assert (kinds[0], set(kinds[1:-1]), kinds[-1]) == (b"IHDR", {b"IDAT"}, b"IEND")
    width, height, *rest = struct.unpack(">2I5B", chunks[0][1])
    assert tuple(rest) == RGB_8_BITS
    lines = zlib.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"))
    step = 1 + 3 * width
    assert len(lines) == step * height
    assert set(lines[::step]) <= {0}, "a line is filtered"
    return Picture(
        width, height, b"".join(lines[i + 1 : i + step] for i in range(0, len(lines), step))
    )


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    while data:
        (length,) = struct.unpack_from(">I", data)
        kind, body = data[4:8], data[8 : 8 + length]
        (crc,) = struct.unpack_from(">I", data, 8 + length)
        assert crc == zlib.crc32(kind + body)
        yield kind, body
        data = data[12 + length :]
