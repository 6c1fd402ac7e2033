"""How a role's log lines look: on a terminal or in a file, and in the journal."""

from __future__ import annotations

import logging
import sys

from rfaas.errors import RfaasError
from rfaas.launch.service import is_journal, marked
from rfaas.terminal import harmless

_PRIORITIES = (  # from level, to syslog(3)'s priority
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
    (logging.NOTSET, 7),
)


class Quoting(logging.Filter):
    """What is put into a line is often a stranger's word, such as what a client calls itself.

    It stays a part of its line, and steers no terminal.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(_quoted(one) for one in record.args)
        return True


def _quoted(value: object) -> object:
    """Text as one line; an error's hint has a line of its own."""
    if isinstance(value, RfaasError):
        hint = f"\nhint: {_quoted(value.hint)}" if value.hint else ""
        return f"{_quoted(value.text)}{hint}"
    if isinstance(value, (str, BaseException)):
        return harmless(str(value)).replace("\n", "\\n")
    return value


class PlainFormatter(logging.Formatter):
    """With time and level, for a terminal or a file."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return harmless(super().format(record))


class JournalFormatter(logging.Formatter):
    """No time and no level in words, which the journal keeps itself; each line has its priority."""

    def __init__(self) -> None:
        super().__init__("%(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        priority = next(number for level, number in _PRIORITIES if record.levelno >= level)
        return marked(priority, harmless(super().format(record)))


def set_up(level: str) -> None:
    """Log to stderr from `level` ("info") on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(Quoting())
    handler.setFormatter(JournalFormatter() if is_journal(2) else PlainFormatter())
    # A line for each lease and none of these in it: without them it costs a third less,
    # docs.python.org, "Logging HOWTO", Optimization.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # no look at the caller's frame
    logging.basicConfig(level=level.upper(), handlers=[handler])
