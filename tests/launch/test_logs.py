"""A log line is one line, whatever a stranger calls himself."""

from __future__ import annotations

import logging

import pytest

from rfaas.errors import ProtocolError
from rfaas.launch.logs import JournalFormatter, PlainFormatter, Quoting

NAME = "eve\n2026-01-01 INFO rfaas.executor: lease 0 granted 64 cores to mallory\x1b[2J"


@pytest.mark.parametrize("formatter", [PlainFormatter(), JournalFormatter()])
def test_words_of_a_stranger(formatter: logging.Formatter) -> None:
    """As an argument, and within an error that is one."""
    for given in (NAME, ValueError(NAME), ProtocolError(NAME)):
        record = logging.LogRecord("rfaas.test", 20, "", 0, "cores to %s, %d", (given, 3), None)
        assert Quoting().filter(record)
        text = formatter.format(record)
        assert text.count("\n") == 0
        assert "\x1b" not in text
        assert "mallory\\x1b[2J, 3" in text


def test_a_hint_has_a_line_of_its_own() -> None:
    error = ProtocolError("one\ntwo", hint="three\nfour")
    record = logging.LogRecord("rfaas.test", 20, "", 0, "%s: %s", ("peer", error), None)
    assert Quoting().filter(record)
    assert PlainFormatter().format(record).endswith("peer: one\\ntwo\nhint: three\\nfour")


def test_our_own_words_keep_their_lines() -> None:
    record = logging.LogRecord("rfaas.test", 20, "", 0, "this\nhint: that %s", ("é",), None)
    assert Quoting().filter(record)
    assert PlainFormatter().format(record).endswith("this\nhint: that é")
