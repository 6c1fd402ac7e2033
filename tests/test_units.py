"""Sizes and times as people write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfaas.units import format_bytes, format_ns, parse_bytes


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("4096", 4096),
        ("100B", 100),
        ("16MiB", 16 << 20),
        ("1 GiB", 1 << 30),
        (" 1.5gib ", 3 << 29),
        ("2K", 2048),
        ("1.50 T", 3 << 39),
        ("1PiB", 1 << 50),
        ("1E", 1 << 60),
        ("500 kB", 500_000),
        ("1MB", 10**6),
        ("0.5KiB", 512),
        ("9" * 20, 10**20 - 1),
    ],
)
def test_parse_bytes(text: str, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "MiB",
        "lots",
        "-1",
        "+1",
        "1_000",
        "1 2",
        "1e3",
        "1..5G",
        ".5G",
        "16 MiBs",
        "\u0661",
        "9" * 21,
    ],
)
def test_parse_bytes_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="not a size such as") as caught:
        parse_bytes(text)
    assert str(caught.value) == f'not a size such as "16MiB", "1 GiB" or "4096": {text!r}'


def test_parse_bytes_refuses_part_of_a_byte() -> None:
    with pytest.raises(ValueError, match=r"^not a whole number of bytes: '1\.0001 KiB'$"):
        parse_bytes("1.0001 KiB")


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (16 << 20, "16 MiB"),
        ((1 << 20) - 1, "1 MiB"),
        (1 << 60, "1 EiB"),
        (1 << 73, "8192 EiB"),
    ],
)
def test_format_bytes(size_bytes: int, text: str) -> None:
    assert format_bytes(size_bytes) == text


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (0, "0 ns"),
        (0.5, "0.5 ns"),
        (350, "350 ns"),
        (1_234, "1.2 us"),
        (999_960, "1 ms"),
        (25_000_000, "25 ms"),
        (2_700_000_000, "2.7 s"),
        (90_000_000_000, "90 s"),
        (-1_500, "-1.5 us"),
    ],
)
def test_format_ns(time_ns: float, text: str) -> None:
    assert format_ns(time_ns) == text


@given(st.integers(min_value=0, max_value=1 << 60))
def test_what_is_formatted_is_parsed_to_within_its_rounding(size_bytes: int) -> None:
    number, unit = format_bytes(size_bytes).split()
    step = parse_bytes(f"1{unit}")
    assert abs(float(number) * step - size_bytes) <= step * 0.051
