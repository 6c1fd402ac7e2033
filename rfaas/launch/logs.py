"""How a role's log lines look: on a terminal or in a file, and in the journal."""

from __future__ import annotations

import logging
import sys

from rfaas.launch.service import is_journal, marked

_PRIORITIES = (  # from level, to syslog(3)'s priority
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
    (logging.NOTSET, 7),
)


class JournalFormatter(logging.Formatter):
    """No time and no level in words, which the journal keeps itself; each line has its priority."""

    def __init__(self) -> None:
        super().__init__("%(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        priority = next(number for level, number in _PRIORITIES if record.levelno >= level)
        return marked(priority, super().format(record))


def set_up(level: str) -> None:
    """Log to stderr from `level` ("info") on."""
    handler = logging.StreamHandler(sys.stderr)
    if is_journal(2):
        handler.setFormatter(JournalFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    # A line for each lease and none of these in it: without them it costs a third less,
    # docs.python.org, "Logging HOWTO", Optimization.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # no look at the caller's frame
    logging.basicConfig(level=level.upper(), handlers=[handler])
