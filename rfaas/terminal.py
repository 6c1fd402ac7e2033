"""Text of strangers, for a person's terminal: what could steer that is shown, and not sent.

A function prints what it likes.  In a file or a pipe its bytes stay as they are; a terminal
would obey them: move its cursor, change its title, answer in the person's name.
"""

from __future__ import annotations

import codecs

TYPE_CHECKING = False  # to type checkers it is True; `typing` itself costs 5 ms
if TYPE_CHECKING:
    from typing import IO

_KEPT = "\n\t"


def harmless(text: str) -> str:
    """With all that is not printed, such as ESC, as Python writes it: \\x1b."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one in _KEPT else one.encode("unicode_escape").decode()
        for one in text.replace("\r\n", "\n")
    )


def shown(text: str, stream: IO[str]) -> str:
    """The text as `stream` may have it: harmless, where that is a terminal."""
    return harmless(text) if stream.isatty() else text


class Harmless:
    """The same of bytes that come in pieces, cut anywhere."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def feed(self, data: bytes, *, last: bool = False) -> bytes:
        """What a terminal may have of it by now."""
        return harmless(self._decoder.decode(data, last)).encode()
