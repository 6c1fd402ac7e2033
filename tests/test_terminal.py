"""What a terminal may have of a stranger's words."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfaas.terminal import Harmless, harmless, shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("plain\ttext\nwith ü, 漢 and 🙂\n", "plain\ttext\nwith ü, 漢 and 🙂\n"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x1b[2J\x1b[H", "\\x1b[2J\\x1b[H"),
        ("50 %\r100 %\n", "50 %\\r100 %\n"),
        ("line\r\n", "line\n"),
        ("\x9b2J", "\\x9b2J"),  # CSI in one character
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\x00\x7f\x08", "\\x00\\x7f\\x08"),
    ],
)
def test_what_steers_is_shown(text: str, safe: str) -> None:
    assert harmless(text) == safe
    assert shown(text, Terminal()) == safe
    assert shown(text, io.StringIO()) == text


def test_bytes_that_are_no_text() -> None:
    assert Harmless().feed(b"a\xff\x1b\xc3", last=True) == b"a\\xff\\x1b\\xc3"


@given(st.binary(max_size=200), st.integers(1, 5))
def test_however_it_is_cut(data: bytes, size: int) -> None:
    """No piece carries a control character, and a character that is cut is whole again."""
    made = Harmless()
    pieces = [made.feed(data[at : at + size]) for at in range(0, len(data), size)]
    pieces.append(made.feed(b"", last=True))
    whole = b"".join(pieces).decode()
    assert all(one.isprintable() or one in "\n\t" for one in whole)
    assert whole.replace("\\r\n", "\n") == Harmless().feed(data, last=True).decode().replace(
        "\\r\n", "\n"
    )
