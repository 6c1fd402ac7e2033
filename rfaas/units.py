"""Sizes and times as people write and read them."""

from __future__ import annotations

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_DIGITS_MAX = 20  # more than 2**63 needs

# K, M, G alone are binary, as in Slurm, cgroups and ulimit; kB, MB, GB are decimal, as SI has it.
_FACTORS: dict[str, int] = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgtpe", start=1):
    _FACTORS[_letter] = _FACTORS[f"{_letter}ib"] = 1024**_power
    _FACTORS[f"{_letter}b"] = 1000**_power


def parse_bytes(text: str) -> int:
    """The number of bytes in a text such as `16MiB`, `1 GiB`, `1.5G`, `500 kB` or `4096`.

    Raises:
        ValueError: not a number and a unit, or not a whole number of bytes.
    """
    stripped = text.strip()
    number = stripped.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    factor = _FACTORS.get(stripped[len(number) :].lower())
    whole, _, fraction = number.rstrip().partition(".")
    digits = whole + fraction
    is_number = digits.isascii() and digits.isdecimal() and whole and len(digits) <= _DIGITS_MAX
    if factor is None or not is_number:
        raise ValueError(f'not a size such as "16MiB", "1 GiB" or "4096": {text[:64]!r}')
    scale: int = 10 ** len(fraction)
    size_bytes, rest = divmod(int(digits) * factor, scale)
    if rest:
        raise ValueError(f"not a whole number of bytes: {text[:64]!r}")
    return size_bytes


def format_bytes(size_bytes: float) -> str:
    """A size for people, to one decimal: `16 MiB`, `1.5 GiB`, `100 B`."""
    return _scaled(size_bytes, 1024, _BINARY)


def format_ns(time_ns: float) -> str:
    """A time for people, to one decimal: `350 ns`, `1.2 us`, `25 ms`, `2.7 s`."""
    return _scaled(time_ns, 1000, ("ns", "us", "ms", "s"))


def _scaled(value: float, step: int, units: tuple[str, ...]) -> str:
    last = len(units) - 1
    power = 0
    # Rounded first, so that 1048575 bytes are 1 MiB and not 1024 KiB.
    while power < last and round(abs(value) / step**power, 1) >= step:
        power += 1
    return f"{value / step**power:.1f}".removesuffix(".0") + f" {units[power]}"
