"""The thumbnail function: exact pictures, clear errors, and headers that mean harm."""

from __future__ import annotations

import math
import random
import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.functions.build import build_shipped
from tests.functions.calls import Outcome, call_plain, call_richer

SIDE = 128


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shipped(tmp_path_factory.mktemp("shipped"))


def ppm(width: int, height: int, pixels: bytes) -> bytes:
    return b"P6\n%d %d\n255\n" % (width, height) + pixels


def thumbnail(shipped: Path, picture: bytes, capacity: int = 1 << 16) -> Outcome:
    return call_richer(shipped, "thumbnail", picture, capacity)


def picture_of(outcome: Outcome) -> tuple[int, int, bytes]:
    assert outcome.status == 0, outcome.text
    header = re.match(rb"P6\n(\d+) (\d+)\n255\n", outcome.result)
    assert header, outcome.result[:20]
    width, height = int(header[1]), int(header[2])
    pixels = outcome.result[header.end() :]
    assert len(pixels) == width * height * 3
    return width, height, pixels


def averages(width: int, height: int, pixels: bytes, to_width: int, to_height: int) -> bytes:
    """The same picture by exact fractions: slow, and the definition itself."""

    def parts(index: int, side: int, to: int) -> list[tuple[int, Fraction]]:
        begin, end = Fraction(index * side, to), Fraction((index + 1) * side, to)
        whole = range(math.floor(begin), math.ceil(end))
        return [(i, min(end, Fraction(i + 1)) - max(begin, Fraction(i))) for i in whole]

    out = bytearray()
    for y in range(to_height):
        for x in range(to_width):
            for channel in range(3):
                total = sum(
                    (
                        pixels[(row * width + column) * 3 + channel] * row_part * column_part
                        for row, row_part in parts(y, height, to_height)
                        for column, column_part in parts(x, width, to_width)
                    ),
                    Fraction(0),
                )
                average = total * to_width * to_height / (width * height)
                out.append(int(average + Fraction(1, 2)))
    return bytes(out)


# Pictures -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((129, 129), (128, 128)),
        ((256, 128), (128, 64)),
        ((128, 256), (64, 128)),
        ((4000, 3000), (128, 96)),
        ((1000, 3), (128, 1)),
        ((3, 1000), (1, 128)),
        ((129, 1), (128, 1)),
        ((1, 65535), (1, 128)),
        ((65535, 1), (128, 1)),
        ((300, 299), (128, 128)),  # 127.57, rounded
        ((300, 297), (128, 127)),  # 126.72
    ],
)
def test_constant_colour_stays_and_sides_keep_their_proportion(
    shipped: Path, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    width, height, pixels = picture_of(
        thumbnail(shipped, ppm(*size, b"\xff\x00\x93" * (size[0] * size[1])))
    )
    assert (width, height) == expected
    assert pixels == b"\xff\x00\x93" * (width * height)


@pytest.mark.parametrize("size", [(1, 1), (1, 128), (128, 1), (100, 7), (128, 128)])
def test_small_pictures_stay_as_they_are(shipped: Path, size: tuple[int, int]) -> None:
    pixels = random.Random(1).randbytes(size[0] * size[1] * 3)
    assert picture_of(thumbnail(shipped, ppm(*size, pixels))) == (*size, pixels)


@pytest.mark.parametrize("size", [(129, 5), (5, 129), (256, 4), (131, 30), (300, 20), (17, 384)])
def test_each_pixel_is_the_exact_average_of_its_area(shipped: Path, size: tuple[int, int]) -> None:
    pixels = random.Random(2).randbytes(size[0] * size[1] * 3)
    width, height, result = picture_of(thumbnail(shipped, ppm(*size, pixels)))
    assert result == averages(*size, pixels, width, height)


def test_gradient_stays_a_gradient(shipped: Path) -> None:
    """Three gradients, along x, along y and against x: each pixel off by rounding alone."""
    side = 640
    row = [x * 255 // (side - 1) for x in range(side)]
    pixels = bytes(c for y in range(side) for x in range(side) for c in (row[x], row[y], row[-x]))
    width, height, result = picture_of(thumbnail(shipped, ppm(side, side, pixels)))
    assert (width, height) == (SIDE, SIDE)
    errors = [
        abs(result[(y * SIDE + x) * 3 + channel] - (along + 0.5) * 255 / SIDE)
        for y in range(SIDE)
        for x in range(SIDE)
        for channel, along in ((0, x), (1, y))
    ]
    assert max(errors) <= 1.5
    assert sum(errors) / len(errors) <= 0.6


def test_white_at_the_largest_side_does_not_overflow(shipped: Path) -> None:
    width, height, pixels = picture_of(
        thumbnail(shipped, ppm(65535, 300, b"\xff" * (65535 * 300 * 3)))
    )
    assert (width, height) == (SIDE, 1)
    assert pixels == b"\xff" * (SIDE * 3)


@pytest.mark.parametrize(
    "header",
    [
        b"P6 2 1 255\n",
        b"P6\n# made by hand\n2 1\n255\n",
        b"P6#a\n#b\r2#c\n\t1\v\f # d\n 255\n",
        b"P6\n2 1\n255# the last white space\n",
        b"P6\r\n002\r\n1 0000255\t",
    ],
)
def test_headers_that_netpbm_takes(shipped: Path, header: bytes) -> None:
    # The pixels begin like a comment: the header is over by then.
    assert picture_of(thumbnail(shipped, header + b"#abc\n\xff")) == (2, 1, b"#abc\n\xff")


def test_what_follows_the_picture_is_left_alone(shipped: Path) -> None:
    """PPM files may hold several pictures; the first one counts."""
    assert picture_of(thumbnail(shipped, ppm(1, 1, b"abc") * 2)) == (1, 1, b"abc")


# Errors -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("picture", "status", "text"),
    [
        (b"", 1, "not a binary PPM picture (P6): the input has 0 bytes"),
        (b"P", 1, "not a binary PPM picture (P6): the input has 1 bytes"),
        (b"\x89PNG", 1, "not a binary PPM picture (P6): the input begins with bytes 89 50"),
        (b"P3 1 1 255\n", 1, "not a binary PPM picture (P6): the input begins with bytes 50 33"),
        (b"P6", 1, "not a binary PPM picture: its header has no valid width"),
        (b"P6 # no end", 1, "not a binary PPM picture: its header has no valid width"),
        (b"P6 -1 1 255\n", 1, "not a binary PPM picture: its header has no valid width"),
        (b"P6 1x1 255\n", 1, "not a binary PPM picture: its header has no valid width"),
        (b"P6 1 ", 1, "not a binary PPM picture: its header has no valid height"),
        (b"P6 1 1", 1, "not a binary PPM picture: its header has no valid height"),
        (b"P6 1 1 255", 1, "not a binary PPM picture: its header has no valid maxval"),
        (b"P6 0 7 255\n", 2, "the picture is empty: 0 x 7 pixels"),
        (b"P6 7 0 255\n", 2, "the picture is empty: 7 x 0 pixels"),
        (
            b"P6 1 1 65535\n",
            3,
            "the picture's maxval is not 255: one byte per channel is supported",
        ),
        (b"P6 1 1 0\n", 3, "the picture's maxval is not 255: one byte per channel is supported"),
        (
            b"P6 65536 1 255\n",
            4,
            "the picture's width is too large: at most 65535 pixels are allowed",
        ),
        (
            b"P6 1 " + b"9" * 999 + b" 255\n",
            4,
            "the picture's height is too large: at most 65535 pixels are allowed",
        ),
        (
            b"P6 2 3 255\n" + bytes(17),
            5,
            "the picture is truncated: 2 x 3 pixels are 18 bytes, 1 are missing",
        ),
        (
            b"P6 65535 65535 255\n",
            5,
            (
                "the picture is truncated: 65535 x 65535 pixels are 12884508675 bytes,"
                " 12884508675 are missing"
            ),
        ),
    ],
)
def test_errors(shipped: Path, picture: bytes, status: int, text: str) -> None:
    assert thumbnail(shipped, picture) == Outcome(status, b"", text)


def test_result_fits_exactly_or_does_not(shipped: Path) -> None:
    picture = ppm(256, 256, bytes(256 * 256 * 3))
    size = len(b"P6\n128 128\n255\n") + 128 * 128 * 3
    assert len(thumbnail(shipped, picture, capacity=size).result) == size
    assert thumbnail(shipped, picture, capacity=size - 1) == Outcome(
        6, b"", "the thumbnail, 49167 bytes, does not fit into the output, 49166 bytes"
    )


def test_error_without_room_for_its_text(shipped: Path) -> None:
    assert thumbnail(shipped, b"", capacity=0) == Outcome(1, b"", "")


HEADER_PARTS = st.sampled_from(
    [
        *b"P6 P5 # 0 1 127 128 129 255 65535 65536 4294967295 4294967297 -1".split(),
        *(b"9223372036854775807", b" ", b"\n", b"\r", b"\0", b"\xff"),
    ]
)


@given(parts=st.lists(HEADER_PARTS, max_size=12), tail=st.binary(max_size=64))
@example(parts=[b"1", b" ", b"1", b" ", b"255", b"\n"], tail=b"ab")
@settings(max_examples=500, deadline=None, derandomize=True)
def test_any_header_ends_in_a_picture_or_an_error(
    shipped: Path, parts: list[bytes], tail: bytes
) -> None:
    outcome = thumbnail(shipped, b"P6\n" + b"".join(parts) + tail, capacity=1000)
    if outcome.status:
        assert outcome.text
    else:
        picture_of(outcome)


@given(
    width=st.integers(1, 200),
    height=st.integers(1, 200),
    missing=st.integers(0, 3),
    capacity=st.integers(0, 60_000),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_any_size_and_any_room(
    shipped: Path, width: int, height: int, missing: int, capacity: int
) -> None:
    picture = ppm(width, height, bytes(width * height * 3))
    outcome = thumbnail(shipped, picture[: len(picture) - missing], capacity)
    assert outcome.status in ((0, 6) if missing == 0 else (5,))


# The others ---------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 64, 104, 105, 4096, 100_001])
def test_echo(shipped: Path, size: int) -> None:
    data = random.Random(3).randbytes(size)
    assert call_plain(shipped, "echo", data, capacity=size) == data
