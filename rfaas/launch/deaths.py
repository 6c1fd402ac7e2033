"""How a worker's process ended, in words for its client and in one word for counting."""

from __future__ import annotations

import os
import re
import signal

from rfaas.proto.worker_messages import Limits, WorkerDied

PTHREAD_EXIT_STATUS = 72  # native/lane.c, thread_exited
_CRASHED = re.compile(rb"\nrfaas worker: crashed at address (0x[0-9a-f]{1,16})\n\Z")
_NO_LIMITS = Limits()


def exit_text(death: WorkerDied, output: bytes = b"", limits: Limits = _NO_LIMITS) -> str:
    """How a process ended, in words, and which of its `limits` it ran into.

    `output` is the end of what it wrote: a worker that crashes says there at which address.
    """
    why = ""
    if death.reached == "memory":
        why = f": its memory limit of {limits.memory_bytes} bytes is reached"
    elif death.reached == "processes":
        why = f": it reached its limit of {limits.processes} processes and threads"
    if found := _CRASHED.search(output):
        why = f" at address {found[1].decode()}{why}"
    if os.WIFSIGNALED(death.status):
        number = os.WTERMSIG(death.status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        if number == signal.SIGXFSZ and limits.file_bytes:
            why = f": its limit of {limits.file_bytes} bytes of a file is reached{why}"
        return f"killed by {name} ({signal.strsignal(number)}){why}"
    code = os.waitstatus_to_exitcode(death.status)
    if code == PTHREAD_EXIT_STATUS:
        return "a function called pthread_exit()"
    return f"it ended by itself with exit status {code}{why}"


def crash_cause(death: WorkerDied | None) -> str:
    """The same in one word, of which there are few: for counting."""
    if death is None:
        return "zygote"
    if not os.WIFSIGNALED(death.status):
        return "exit"
    try:
        return signal.Signals(os.WTERMSIG(death.status)).name
    except ValueError:
        return "signal"
