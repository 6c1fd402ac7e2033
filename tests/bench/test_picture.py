"""The demo's pictures: painted, packed into files, shown in terminals."""

from __future__ import annotations

import re

import pytest

from rfaas.bench.picture import (
    GREYS,
    Picture,
    from_ppm,
    landscape,
    to_ascii,
    to_blocks,
    to_png,
    to_ppm,
)
from rfaas.errors import UsageError
from tests.bench.png import decoded

SMALL = landscape(96, 72)
CHECKS = Picture(2, 2, bytes([255] * 3 + [0] * 6 + [255] * 3))


@pytest.mark.parametrize(("width", "height"), [(96, 72), (640, 480), (33, 7)])
def test_landscape_has_the_size_that_was_asked_for(width: int, height: int) -> None:
    painted = landscape(width, height)
    assert painted[:2] == (width, height)
    assert len(painted.rgb) == 3 * width * height
    assert painted == landscape(width, height)


def test_landscape_has_a_sun_and_mountains() -> None:
    greys = [sum(SMALL.rgb[at : at + 3]) for at in range(0, len(SMALL.rgb), 3)]
    sun = [at for at, grey in enumerate(greys) if grey == max(greys)]
    assert all(at // 96 < 36 for at in sun), "it stands in the upper half"
    assert min(greys[48 * 96 - 96 : 48 * 96]) < max(greys) / 3, "the ridge before it is dark"


@pytest.mark.parametrize("first", [b" ", b"\n", b"\t", b"0", b"#"])
def test_ppm_round_trip(first: bytes) -> None:
    """Also where the pixels begin with what would separate words in the header."""
    one = Picture(2, 1, first * 6)
    assert from_ppm(memoryview(to_ppm(one))) == one
    assert from_ppm(to_ppm(SMALL)) == SMALL


@pytest.mark.parametrize(
    "data",
    [b"", b"P5\n1 1\n255\nabc", b"P6\n1 1\n254\nabc", b"P6\n1 1\n255\nab", b"P6\n1 x\n255\nabc"],
)
def test_ppm_refuses_other_things(data: bytes) -> None:
    with pytest.raises(UsageError, match="PPM"):
        from_ppm(data)


def test_png_holds_the_pixels() -> None:
    for one in (SMALL, CHECKS, Picture(1, 1, b"abc")):
        assert decoded(to_png(one)) == one


def test_ascii_is_as_wide_as_asked_and_keeps_the_shape() -> None:
    lines = list(to_ascii(SMALL, 60))
    assert len(lines) == round(60 * 72 / 96 / 2)
    assert max(map(len, lines)) == 60
    assert set("".join(lines)) <= set(GREYS)
    assert {GREYS[0], GREYS[-1]} <= set("".join(line.ljust(60) for line in lines))


def test_ascii_of_one_colour_and_of_few_pixels() -> None:
    assert list(to_ascii(Picture(4, 4, bytes(48)), 4)) == ["", ""]
    assert list(to_ascii(CHECKS, 4)) == ["@@", "  @@"]


def test_blocks_show_two_rows_a_line_and_restore_the_colours() -> None:
    lines = list(to_blocks(SMALL, 32))
    assert len(lines) == 12
    for line in lines:
        assert line.count("\u2580") == 32
        assert line.endswith("\x1b[0m")
    (line,) = to_blocks(CHECKS, 2)
    assert re.findall(r"[\d;]+(?=m\u2580)", line) == [
        "38;2;255;255;255;48;2;0;0;0",
        "38;2;0;0;0;48;2;255;255;255",
    ]
