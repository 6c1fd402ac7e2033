"""Pictures for the demo: one to compute on, and ways to show it.

A picture is its width, its height and three bytes per pixel, row by row.  No
image library: `rfaas demo` must run where nothing is installed.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from rfaas.errors import UsageError

PPM_HEADER_BYTES_MAX = 64  # of those that thumbnail writes
GREYS = " .:-=+*#%@"  # from dark to bright, on a dark terminal
ASCII_COLUMNS = 60
BLOCK_COLUMNS = 64

_SKY = ((44, 62, 118), (250, 170, 96))  # from the top to the horizon
_SUN = (255, 244, 200)
# Ridges from far to near: height over the horizon, roughness, phase, colour.
_RIDGES = (
    (0.30, 0.16, 0.4, (132, 104, 128)),
    (0.20, 0.13, 2.1, (86, 70, 104)),
    (0.09, 0.09, 4.4, (40, 40, 66)),
)
_DEEPER = bytes(value * 5 // 8 for value in range(256))  # what water leaves of light


class Picture(NamedTuple):
    """See the module's docstring."""

    width: int
    height: int
    rgb: bytes


def landscape(width: int, height: int) -> Picture:
    """Mountains before a low sun, and a lake that mirrors them; always the same."""
    horizon = height * 2 // 3
    ridges = [_ridge(width, horizon, *ridge[:3]) for ridge in _RIDGES]
    colours = [bytes(ridge[3]) for ridge in _RIDGES]
    rows = [_sky_row(width, horizon, y) for y in range(horizon)]
    for top, colour in zip(ridges, colours, strict=True):
        for x, first in enumerate(top):
            for y in range(first, horizon):
                rows[y][3 * x : 3 * x + 3] = colour
    for depth in range(height - horizon):
        source = rows[max(0, horizon - 1 - depth * horizon // (height - horizon))]
        shift = 3 * (round((2 + depth / 8) * math.sin(depth * depth / 90 + depth)) % width)
        rows.append((source[shift:] + source[:shift]).translate(_DEEPER))
    return Picture(width, height, b"".join(rows))


def _ridge(width: int, horizon: int, rise: float, rough: float, phase: float) -> list[int]:
    """The topmost row of a ridge in each column."""
    tops = []
    for x in range(width):
        t = 9 * x / width + phase
        # Folded sines have the sharp tops that mountains have.
        bumps = 0.6 * abs(math.sin(t)) + 0.3 * abs(math.sin(2.3 * t)) + 0.1 * math.sin(7.1 * t)
        tops.append(
            min(horizon - 1, max(0, round(horizon * (1 - rise - 2 * rough * (bumps - 0.5)))))
        )
    return tops


def _sky_row(width: int, horizon: int, y: int) -> bytearray:
    """One row of the sky, with what it has of the sun and its glow."""
    part = (y / horizon) ** 1.3
    sky = [round(a + (b - a) * part) for a, b in zip(*_SKY, strict=True)]
    row = bytearray(bytes(sky) * width)
    middle, radius, dy = round(width * 0.66), horizon * 0.13, y - horizon * 0.47
    reach = 4 * radius
    if abs(dy) >= reach:
        return row
    half = int(math.sqrt(reach * reach - dy * dy))
    for x in range(max(0, middle - half), min(width, middle + half)):
        distance = math.hypot(x - middle, dy)
        glow = 1.0 if distance <= radius else 0.7 * ((reach - distance) / (reach - radius)) ** 2
        for channel in range(3):
            value = sky[channel]
            row[3 * x + channel] = round(value + (_SUN[channel] - value) * glow)
    return row


# Files -------------------------------------------------------------------


def to_ppm(picture: Picture) -> bytes:
    """The picture as a binary PPM, which is what `thumbnail` takes."""
    return b"P6\n%d %d\n255\n" % (picture.width, picture.height) + picture.rgb


def from_ppm(data: bytes | memoryview) -> Picture:
    """The picture in a binary PPM without comments, as `thumbnail` returns it.

    Raises:
        UsageError: it is something else.
    """
    words = bytes(data[:PPM_HEADER_BYTES_MAX]).split(None, 4)
    if (
        len(words) < 4
        or words[0] != b"P6"
        or words[3] != b"255"
        or not all(word.isdigit() for word in words[1:3])
    ):
        raise UsageError(f"not a binary PPM picture: it begins with {bytes(data[:8])!r}")
    width, height = int(words[1]), int(words[2])
    rgb = bytes(data[len(data) - 3 * width * height :]) if width * height else b""
    if len(data) != len(b" ".join(words[:4])) + 1 + len(rgb):
        raise UsageError(f"a PPM picture of {width} x {height} has no {len(data)} bytes")
    return Picture(width, height, rgb)


def to_png(picture: Picture) -> bytes:
    """The picture as a PNG file (RFC 2083): a header, one run of data, an end."""
    line = 3 * picture.width
    lines = b"".join(
        b"\0" + picture.rgb[start : start + line]  # 0: the line is not filtered
        for start in range(0, line * picture.height, line)
    )
    header = struct.pack(">2I5B", picture.width, picture.height, 8, 2, 0, 0, 0)  # 2: RGB
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    )


# Terminals ---------------------------------------------------------------


def to_blocks(picture: Picture, columns: int = BLOCK_COLUMNS) -> Iterator[str]:
    """Lines of half blocks in 24-bit colour: two pixels in each character."""
    small = _resized(picture, columns, 2 * _lines(picture, columns))
    for upper, lower in zip(small[::2], small[1::2], strict=True):
        pairs = zip(upper, lower, strict=True)
        yield "".join(_half_block(above, below) for above, below in pairs) + "\x1b[0m"


def to_ascii(picture: Picture, columns: int = ASCII_COLUMNS) -> Iterator[str]:
    """Lines of plain characters, the denser the brighter."""
    small = _resized(picture, columns, _lines(picture, columns))
    greys = [[(2 * r + 5 * g + b) // 8 for r, g, b in row] for row in small]
    least, most = min(map(min, greys)), max(map(max, greys))
    for row in greys:
        yield "".join(
            GREYS[(value - least) * (len(GREYS) - 1) // max(1, most - least)] for value in row
        ).rstrip()


def _half_block(above: tuple[int, int, int], below: tuple[int, int, int]) -> str:
    front, back = (";".join(map(str, colour)) for colour in (above, below))
    return f"\x1b[38;2;{front};48;2;{back}m\u2580"


def _lines(picture: Picture, columns: int) -> int:
    """How many lines show a picture over `columns`: a character is twice as high as wide."""
    return max(1, round(columns * picture.height / picture.width / 2))


def _resized(picture: Picture, columns: int, rows: int) -> list[list[tuple[int, int, int]]]:
    """Averages of the picture's areas; an area has at least the pixel it begins with."""
    return [
        [
            _average(
                picture, _span(column, columns, picture.width), _span(row, rows, picture.height)
            )
            for column in range(columns)
        ]
        for row in range(rows)
    ]


def _span(index: int, parts: int, length: int) -> range:
    """Part `index` of `length` things cut into `parts`."""
    first = index * length // parts
    return range(first, max(first + 1, (index + 1) * length // parts))


def _average(picture: Picture, columns: range, rows: range) -> tuple[int, int, int]:
    starts = [3 * (picture.width * y + x) for y in rows for x in columns]
    red, green, blue = (
        sum(picture.rgb[start + channel] for start in starts) // len(starts) for channel in range(3)
    )
    return red, green, blue
